//! Chat templates of published models against what `transformers` rendered, text by text.
//!
//! `scripts/fixtures/chat_templates.py` writes the expected texts; they are made from files that are not ours
//! to carry, so where they have not been made this test says so and checks nothing.

use std::{collections::HashMap, fs};

use hearth_text::chat_template::ChatTemplate;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::support;

/// Templates that add strings to the result of jinja2's `safe` filter. There that string is of a type whose `+`
/// HTML-escapes the other side, quotes of JSON included; here it is a plain string. The templates' authors
/// meant the plain one.
const ESCAPED_BY_ACCIDENT: [&str; 1] = ["meetkai-functionary-medium-v3.1.jinja"];

#[derive(Deserialize)]
struct Fixture {
    bos: String,
    eos: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    conversation: String,
    messages: Vec<Value>,
    tools: Vec<Value>,
    add_generation_prompt: bool,
    kwargs: Map<String, Value>,
    /// What was rendered; absent when rendering raised.
    text: Option<String>,
    #[serde(default)]
    raised: String,
}

#[test]
fn published_templates_render_as_transformers_renders_them() {
    let fixtures = support::fetched_fixtures();
    let path = fixtures.join("chat_templates.json");
    let Ok(json) = fs::read_to_string(&path) else {
        eprintln!("skipped: {} has not been made by scripts/fixtures/chat_templates.py", path.display());
        return;
    };
    let fixture: Fixture = serde_json::from_str(&json).expect("the fixture is JSON of the script's shape");
    let mut templates = HashMap::new();
    let mut differences = Vec::new();
    let mut escaped = 0;
    for case in &fixture.cases {
        let template = templates.entry(&case.template).or_insert_with(|| {
            let source =
                fs::read_to_string(fixtures.join("templates").join(&case.template)).expect("the template's file");
            ChatTemplate::new(&source, &fixture.bos, &fixture.eos)
        });
        let template = match template {
            Ok(template) => template,
            Err(error) => {
                differences.push(format!("{}: does not compile: {error}", case.template));
                continue;
            }
        };
        let rendered = template.render(&case.messages, &case.tools, case.add_generation_prompt, &case.kwargs);
        let place = format!("{} / {}", case.template, case.conversation);
        match (&case.text, rendered) {
            (Some(expected), Ok(text)) if *expected == text => {}
            (Some(expected), Ok(_)) if ESCAPED_BY_ACCIDENT.contains(&&*case.template) && expected.contains("&#34;") => {
                escaped += 1;
            }
            (Some(expected), Ok(text)) => differences.push(format!("{place}: {}", first_difference(expected, &text))),
            (Some(_), Err(error)) => differences.push(format!("{place}: rendered there, failed here: {error}")),
            (None, Ok(_)) => differences.push(format!("{place}: raised there ({}), rendered here", case.raised)),
            (None, Err(_)) => {}
        }
    }
    let equal = fixture.cases.len() - differences.len() - escaped;
    println!("{equal} of {} cases equal, {escaped} escaped by accident there", fixture.cases.len());
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}

fn first_difference(expected: &str, text: &str) -> String {
    let common = expected.bytes().zip(text.bytes()).take_while(|(a, b)| a == b).count();
    let around = |text: &str| {
        String::from_utf8_lossy(&text.as_bytes()[common.saturating_sub(40)..text.len().min(common + 60)]).into_owned()
    };
    format!("expected {:?}, rendered {:?}", around(expected), around(text))
}
