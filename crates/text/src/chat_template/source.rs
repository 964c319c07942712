//! Template source as jinja2 reads it, rewritten where minijinja reads it differently.
//!
//! Four rewrites: every line ending becomes a line feed; a `generation` block, which marks the assistant's text for
//! training, becomes a `with` block, which likewise prints its body in its own scope; a slice `x[a:b:c]` becomes the
//! method call `x.__slice__(a, b, c)`, because minijinja's own slices differ from Python's for negative steps, absent
//! bounds and `none`; and what a `for` iterates over is passed through a filter that refuses `none`, as Python does.
//! Line numbers stay unchanged.

use super::{python_filters::LOOP_FILTER, python_methods::SLICE_METHOD};

/// The source that minijinja compiles.
pub(super) fn for_minijinja(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut rewriter = Rewriter { rest: &source, out: String::with_capacity(source.len()) };
    rewriter.run();
    rewriter.out
}

struct Rewriter<'a> {
    rest: &'a str,
    out: String,
}

/// An unclosed bracket: its position in the output, and the colons directly inside it.
struct OpenBracket {
    position: usize,
    colons: Vec<usize>,
}

impl Rewriter<'_> {
    fn run(&mut self) {
        while let Some(start) = self.rest.find('{') {
            self.copy(start);
            if self.rest.starts_with("{#") {
                self.copy_through("#}");
            } else if self.rest.starts_with("{%") {
                self.tag();
            } else if self.rest.starts_with("{{") {
                self.copy(2);
                self.code("}}", false);
            } else {
                self.copy(1);
            }
        }
        self.copy(self.rest.len());
    }

    fn copy(&mut self, length: usize) {
        let (text, rest) = self.rest.split_at(length);
        self.out.push_str(text);
        self.rest = rest;
    }

    /// Copies up to and including `end`, or everything if `end` is missing: the compiler will report that.
    fn copy_through(&mut self, end: &str) {
        let length = self.rest.find(end).map_or(self.rest.len(), |start| start + end.len());
        self.copy(length);
    }

    fn tag(&mut self) {
        self.copy(2);
        let inner = self.rest.trim_start_matches(['-', '+']).trim_start();
        let name: &str = inner.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default();
        let replacement = match name {
            "generation" => "with",
            "endgeneration" => "endwith",
            "raw" => {
                self.copy_through("endraw");
                return self.copy_through("%}");
            }
            "for" => return self.code("%}", true),
            _ => return self.code("%}", false),
        };
        let name_length = name.len();
        self.copy(self.rest.len() - inner.len());
        self.out.push_str(replacement);
        self.rest = &self.rest[name_length..];
        self.copy_through("%}");
    }

    /// Processes the code of a tag or an expression, up to and including `end`. `is_loop`: the code belongs to a `for`
    /// tag.
    fn code(&mut self, end: &str, is_loop: bool) {
        // Where in the output the expression begins that the loop iterates over.
        let mut looped_over = None;
        let mut seen_in = !is_loop;
        let mut open: Vec<OpenBracket> = Vec::new();
        while let Some(character) = self.rest.chars().next() {
            if open.is_empty() && self.rest.starts_with(end) {
                self.close_loop(&mut looped_over);
                return self.copy(end.len());
            }
            if character.is_alphanumeric() || character == '_' {
                let word_end = self.rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(self.rest.len());
                if open.is_empty() {
                    match &self.rest[..word_end] {
                        "if" | "recursive" => self.close_loop(&mut looped_over),
                        "in" if !seen_in => {
                            seen_in = true;
                            looped_over = Some(self.out.len() + word_end);
                        }
                        _ => {}
                    }
                }
                self.copy(word_end);
                continue;
            }
            match character {
                '\'' | '"' => {
                    self.string(character);
                    continue;
                }
                '[' | '(' | '{' => open.push(OpenBracket { position: self.out.len(), colons: Vec::new() }),
                ':' => {
                    if let Some(bracket) = open.last_mut() {
                        bracket.colons.push(self.out.len());
                    }
                }
                ']' => {
                    if let Some(OpenBracket { position, colons }) = open.pop()
                        && !colons.is_empty()
                        && self.out[position..].starts_with('[')
                    {
                        self.slice(position, &colons);
                        self.rest = &self.rest[1..];
                        continue;
                    }
                }
                ')' | '}' => {
                    open.pop();
                }
                _ => {}
            }
            self.copy(character.len_utf8());
        }
    }

    /// Wraps the output from `start` in the filter.
    fn close_loop(&mut self, start: &mut Option<usize>) {
        let Some(start) = start.take() else { return };
        let tail = self.out.split_off(start);
        let expression = tail.trim_end().trim_end_matches(['-', '+']).trim_end();
        self.out.push_str(&format!(" ({})|{LOOP_FILTER}{}", expression.trim_start(), &tail[expression.len()..]));
    }

    fn string(&mut self, quote: char) {
        let mut escaped = false;
        let end = self.rest.char_indices().skip(1).find(|&(_, character)| {
            let closes = character == quote && !escaped;
            escaped = character == '\\' && !escaped;
            closes
        });
        self.copy(end.map_or(self.rest.len(), |(position, _)| position + 1));
    }

    /// Replaces the output from the bracket at `position` on with the method call.
    fn slice(&mut self, position: usize, colons: &[usize]) {
        let mut bounds = Vec::with_capacity(3);
        let mut start = position + 1;
        for end in colons.iter().copied().chain([self.out.len()]) {
            let bound = self.out[start..end].trim();
            bounds.push(if bound.is_empty() { "none" } else { bound }.to_owned());
            start = end + 1;
        }
        self.out.truncate(position);
        self.out.push_str(&format!(".{SLICE_METHOD}({})", bounds.join(", ")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_become_calls() {
        for (source, rewritten) in [
            ("{{ a[1:] }}", "{{ a.__slice__(1, none) }}"),
            ("{{ a[::-1] }}", "{{ a.__slice__(none, none, -1) }}"),
            ("{{ a[b[:2]:c['x:y'][0]] }}", "{{ a.__slice__(b.__slice__(none, 2), c['x:y'][0]) }}"),
            ("{{ {'a': [1, {'b': 2}]}['a'] }}", "{{ {'a': [1, {'b': 2}]}['a'] }}"),
            ("{{ 'it\\'s [1:2]'[0:1] }}", "{{ 'it\\'s [1:2]'.__slice__(0, 1) }}"),
            ("text[1:2] {# a[1:2] #}{ x[1:2] }", "text[1:2] {# a[1:2] #}{ x[1:2] }"),
            (
                "{% raw %}{{ a[1:] }}{% endraw %}{{ a[:1] }}",
                "{% raw %}{{ a[1:] }}{% endraw %}{{ a.__slice__(none, 1) }}",
            ),
            ("{%- generation -%}x{%+ endgeneration %}", "{%- with -%}x{%+ endwith %}"),
            ("{% for a, b in c if d in e %}", "{% for a, b in (c)|__iter__ if d in e %}"),
            ("{%- for a in b[1:] -%}", "{%- for a in (b.__slice__(1, none))|__iter__ -%}"),
            ("{% for a in [1 if x else 2] recursive %}", "{% for a in ([1 if x else 2])|__iter__ recursive %}"),
            ("a\r\nb\rc", "a\nb\nc"),
            ("{{ 'open", "{{ 'open"),
            ("{{ a[1", "{{ a[1"),
        ] {
            assert_eq!(for_minijinja(source), rewritten);
        }
    }
}
