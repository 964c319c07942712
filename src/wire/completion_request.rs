//! The body of `POST /v1/completions`.

use hearth_domain::{GenerateRequest, Prompt, error::Result};
use serde_json::Value;

use super::{
    Envelope, Parsed,
    body::{BOOLEAN, FieldSpec, RequestBody, honoured, refused},
    fields::{Fields, bad_value, token_ids, wrong_type},
    generation::{self, CHOICES_MAX, Common, TOP_LOGPROBS_MAX},
};

/// Further fields of `/v1/completions`.
const FIELDS: &[FieldSpec] = &[
    honoured(
        "prompt",
        r#"{"anyOf":[{"type":"string"},{"type":"array","minItems":1,"maxItems":128,"items":{"type":"string"}},{"type":"array","minItems":1,"items":{"type":"integer","minimum":0}},{"type":"array","minItems":1,"maxItems":128,"items":{"type":"array","minItems":1,"items":{"type":"integer","minimum":0}}}]}"#,
        "Text, several texts, token ids, or several of those.",
    ),
    honoured(
        "logprobs",
        r#"{"type":"integer","minimum":0,"maximum":20}"#,
        "Report each token's log-probability and this many alternatives.",
    ),
    honoured("echo", BOOLEAN, "Prepend the prompt; with `logprobs`, score it too."),
    refused("suffix", &[r#""""#], "Filling in the middle is not implemented."),
];

/// Most prompts in one request: each becomes a request to the engine.
pub const PROMPTS_MAX: usize = 128;
/// OpenAI's default, which load generators and old clients rely on.
pub const MAX_TOKENS_DEFAULT: usize = 16;

/// What one completion request asks for.
#[derive(Debug)]
pub struct CompletionRequest {
    pub model: Option<String>,
    pub stream: bool,
    pub include_usage: bool,
    pub return_token_ids: bool,
    /// One generation per prompt, in prompt order; choices are numbered across prompts.
    pub generations: Vec<GenerateRequest>,
}

impl RequestBody for CompletionRequest {
    const NAME: &'static str = "CompletionRequest";
    const FIELDS: &'static [&'static [FieldSpec]] = &[generation::FIELDS, FIELDS];
    const REQUIRED: &'static [&'static str] = &["model", "prompt"];
}

impl CompletionRequest {
    pub fn read(body: Value, envelope: &Envelope) -> Result<Parsed<Self>> {
        let mut fields = Fields::body(body)?;
        let prompt = fields.required("prompt")?;
        let prompts = read_prompts(prompt)?;
        // `best_of` equal to `n` changes nothing; the table of fields refuses other values.
        if fields.peek("best_of").is_some() && fields.peek("best_of") == fields.peek("n") {
            fields.take("best_of");
        }
        let common = Common::read(&mut fields, envelope)?;
        check_choices(prompts.len(), common.n)?;
        let logprobs = read_logprobs(&mut fields)?;
        let echo = fields.boolean("echo")?.unwrap_or(false);
        let ignored = Self::ignored(fields.rest(), envelope.strict)?;
        let generation = GenerateRequest {
            account: envelope.account.clone(),
            prompt: Prompt::Tokens(Vec::new()),
            sampling: common.sampling,
            max_tokens: Some(common.max_tokens.unwrap_or(MAX_TOKENS_DEFAULT)),
            min_tokens: common.min_tokens,
            stop: common.stop,
            stop_token_ids: common.stop_token_ids,
            ignore_eos: common.ignore_eos,
            n: common.n,
            logprobs,
            echo,
            return_token_ids: common.return_token_ids,
            constraint: common.constraint,
            deadline: common.deadline,
            session: common.session,
        };
        let generations =
            prompts.into_iter().map(|prompt| GenerateRequest { prompt, ..generation.clone() }).collect::<Vec<_>>();
        let request = Self {
            model: common.model,
            stream: common.stream,
            include_usage: common.include_usage,
            return_token_ids: common.return_token_ids,
            generations,
        };
        Ok(Parsed { request, ignored })
    }
}

/// Each choice of each prompt takes a place in the engine and its own memory.
fn check_choices(prompts: usize, n: usize) -> Result<()> {
    let choices = prompts.saturating_mul(n);
    if choices <= CHOICES_MAX {
        return Ok(());
    }
    let message = format!(
        "`n` is {n} and `prompt` has {prompts} prompts, which makes {choices} choices; a request may have at most \
         {CHOICES_MAX}. Send several requests."
    );
    Err(bad_value("n", message))
}

/// The legacy field: a number of alternatives. `true` and `false` are what chat clients send by mistake.
fn read_logprobs(fields: &mut Fields) -> Result<Option<usize>> {
    Ok(fields.integer("logprobs", 0, TOP_LOGPROBS_MAX)?.and_then(|top| usize::try_from(top).ok()))
}

fn read_prompts(prompt: Value) -> Result<Vec<Prompt>> {
    let items = match prompt {
        Value::String(text) => return Ok(vec![Prompt::Text(text)]),
        Value::Array(items) => items,
        other => return Err(wrong_type("prompt", "a string, an array of strings or token ids", &other)),
    };
    match items.first() {
        None => return Err(bad_value("prompt", "`prompt` must not be an empty array.")),
        Some(Value::Number(_)) => return Ok(vec![Prompt::Tokens(token_ids(items, "prompt")?)]),
        Some(_) => {}
    }
    if items.len() > PROMPTS_MAX {
        return Err(bad_value(
            "prompt",
            format!("`prompt` must have at most {PROMPTS_MAX} prompts, but has {}.", items.len()),
        ));
    }
    items
        .into_iter()
        .enumerate()
        .map(|(index, item)| {
            let place = format!("prompt[{index}]");
            match item {
                Value::String(text) => Ok(Prompt::Text(text)),
                Value::Array(ids) if ids.is_empty() => {
                    Err(bad_value(place, "A prompt of token ids must not be empty."))
                }
                Value::Array(ids) => Ok(Prompt::Tokens(token_ids(ids, &place)?)),
                other => Err(wrong_type(&place, "a string or an array of token ids", &other)),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    fn read(body: Value) -> Result<CompletionRequest> {
        let envelope = Envelope { account: hearth_domain::Account::unrecorded(), deadline: None, strict: false };
        Ok(CompletionRequest::read(body, &envelope)?.request)
    }

    #[test]
    fn four_forms_of_prompt() {
        let forms = [json!("a"), json!(["a", "b"]), json!([1, 2]), json!([[1], [2, 3], [4]])];
        let counts: Vec<_> =
            forms.into_iter().map(|prompt| read(json!({"prompt": prompt})).unwrap().generations.len()).collect();
        assert_eq!(counts, [1, 2, 1, 3]);
        assert_eq!(read(json!({"prompt": [[1], []]})).unwrap_err().param(), Some("prompt[1]"));
        assert_eq!(read(json!({"prompt": [1, "a"]})).unwrap_err().param(), Some("prompt[1]"));
    }

    #[test]
    fn prompts_times_choices_are_bounded() {
        let prompts = |count: usize| vec!["a"; count];
        for (count, n) in [(128, 1), (64, 2), (1, 128), (8, 16)] {
            assert_eq!(read(json!({"prompt": prompts(count), "n": n})).unwrap().generations.len(), count);
        }
        for (prompt, n) in [(json!(prompts(128)), 2), (json!(prompts(2)), 65), (json!(vec![[1]; 16]), 9)] {
            let error = read(json!({"prompt": prompt, "n": n, "best_of": n})).unwrap_err();
            assert_eq!(error.param(), Some("n"));
            let count = prompt.as_array().unwrap().len();
            for said in [n.to_string(), count.to_string(), "128".to_owned()] {
                assert!(error.message().contains(&said), "{error}");
            }
        }
    }

    #[test]
    fn prompts_share_what_is_the_same_for_all() {
        let bias: serde_json::Map<_, _> = (0..100).map(|id| (id.to_string(), json!(1))).collect();
        let body = json!({
            "prompt": vec!["a"; 128], "stop": ["x".repeat(1024)], "logit_bias": bias, "guided_regex": "a+",
        });
        let generations = read(body).unwrap().generations;
        let first = &generations[0];
        for other in &generations[1..] {
            assert!(Arc::ptr_eq(&first.stop, &other.stop));
            assert!(Arc::ptr_eq(&first.sampling.logit_bias, &other.sampling.logit_bias));
            assert!(Arc::ptr_eq(first.constraint.as_ref().unwrap(), other.constraint.as_ref().unwrap()));
        }
    }

    #[test]
    fn best_of_is_accepted_where_it_changes_nothing() {
        let request = read(json!({"prompt": "a", "n": 2, "best_of": 2})).unwrap();
        assert_eq!(request.generations[0].n, 2);
        assert!(read(json!({"prompt": "a", "best_of": 1})).is_ok());
        assert_eq!(read(json!({"prompt": "a", "best_of": 3})).unwrap_err().param(), Some("best_of"));
    }
}
