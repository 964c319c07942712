//! The cache key: everything that an answer depends on, as one hash.
//!
//! Every request is destructured field by field, without `..`, so a new field does not compile until this file says how
//! it affects the key. Each value is written with its length or a tag before it, so that two different requests cannot
//! produce the same bytes.
//!
//! JSON is hashed in its given order: a template prints a tool's schema as it finds it, and a schema's properties are
//! generated in their order, so another order may give another answer. The fields of a message and the template's
//! variables are the exception: they are looked up by name, and clients write them in any order.

use serde_json::{Map, Value};

use hearth_domain::{
    Account, ChatPrompt, Constraint, EmbedInput, EmbedInputType, GenerateRequest, ModelInfo, ModelKind, Prompt,
    RoutingPolicy, SamplingParams, ToolChoice, documents::EmbeddingIdentity,
};

/// The hash of everything that an answer depends on.
pub type Key = blake3::Hash;

/// Writes a [`Key`], value by value.
#[derive(Debug)]
pub struct KeyWriter(blake3::Hasher);

impl KeyWriter {
    /// `purpose` separates key spaces: keys of two purposes never collide.
    pub fn new(purpose: &str) -> Self {
        let mut writer = Self(blake3::Hasher::new());
        writer.text(purpose);
        writer
    }

    pub fn finish(&self) -> Key {
        self.0.finalize()
    }

    pub fn number(&mut self, value: u64) -> &mut Self {
        self.0.update(&value.to_le_bytes());
        self
    }

    pub fn count(&mut self, value: usize) -> &mut Self {
        self.number(value as u64)
    }

    pub fn flag(&mut self, value: bool) -> &mut Self {
        self.number(u64::from(value))
    }

    pub fn float(&mut self, value: f32) -> &mut Self {
        self.number(u64::from(value.to_bits()))
    }

    pub fn text(&mut self, value: &str) -> &mut Self {
        self.count(value.len()).0.update(value.as_bytes());
        self
    }

    pub fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) -> &mut Self {
        self.flag(value.is_some());
        if let Some(value) = value {
            write(self, value);
        }
        self
    }

    pub fn list<T>(&mut self, values: &[T], mut write: impl FnMut(&mut Self, &T)) -> &mut Self {
        self.count(values.len());
        for value in values {
            write(self, value);
        }
        self
    }

    pub fn json(&mut self, value: &Value) {
        match value {
            Value::Null => self.number(0),
            Value::Bool(value) => self.number(1).flag(*value),
            Value::Number(value) => self.number(2).text(&value.to_string()),
            Value::String(value) => self.number(3).text(value),
            Value::Array(values) => self.number(4).list(values, Self::json),
            Value::Object(fields) => {
                self.number(5).count(fields.len());
                for (name, value) in fields {
                    self.text(name).json(value);
                }
                self
            }
        };
    }

    /// An object whose fields are looked up by name.
    fn fields(&mut self, fields: &Map<String, Value>) {
        let mut fields: Vec<_> = fields.iter().collect();
        fields.sort_by_key(|(name, _)| *name);
        self.list(&fields, |writer, (name, value)| writer.text(name).json(value));
    }

    /// The caller, and which side may answer.
    pub fn account(&mut self, account: &Account) -> &mut Self {
        self.text(&account.caller().id).option(account.policy(), |writer, policy| {
            writer.text(RoutingPolicy::as_str(policy));
        })
    }

    /// The model that answers. Two models of one name differ in their fingerprints.
    pub fn model(&mut self, info: &ModelInfo) -> &mut Self {
        let ModelInfo {
            id,
            kind,
            architecture,
            context_length,
            vocab_size,
            embedding_length,
            parameters,
            quantization,
            size_bytes,
            supports_tools,
            supports_reasoning,
            // Copies of a file have different dates.
            created: _,
            fingerprint,
        } = info;
        let kind = match kind {
            ModelKind::Chat => 0,
            ModelKind::Embedding => 1,
            ModelKind::Rerank => 2,
        };
        self.text(id).number(kind).text(architecture).count(*context_length).count(*vocab_size);
        self.option(*embedding_length, |writer, length| {
            writer.count(length);
        });
        self.number(*parameters).text(quantization).number(*size_bytes);
        self.flag(*supports_tools).flag(*supports_reasoning).text(fingerprint)
    }

    /// Everything in a generation request that the text depends on.
    pub fn generation(&mut self, request: &GenerateRequest) -> &mut Self {
        let GenerateRequest {
            account,
            prompt,
            sampling,
            max_tokens,
            min_tokens,
            stop,
            stop_token_ids,
            ignore_eos,
            n,
            logprobs,
            echo,
            return_token_ids,
            constraint,
            // It ends an answer with an error, and failed answers are not kept.
            deadline: _,
            // Who computes an answer does not change it.
            session: _,
        } = request;
        self.account(account);
        self.prompt(prompt);
        self.sampling(sampling);
        self.option(*max_tokens, |writer, tokens| {
            writer.count(tokens);
        });
        self.count(*min_tokens);
        self.list(stop, |writer, text| {
            writer.text(text);
        });
        self.list(stop_token_ids, |writer, id| {
            writer.number(u64::from(*id));
        });
        self.flag(*ignore_eos).count(*n);
        self.option(*logprobs, |writer, count| {
            writer.count(count);
        });
        self.flag(*echo).flag(*return_token_ids);
        self.option(constraint.as_deref(), Self::constraint)
    }

    fn prompt(&mut self, prompt: &Prompt) {
        match prompt {
            Prompt::Chat(chat) => self.number(0).chat(chat),
            Prompt::Text(text) => {
                self.number(1).text(text);
            }
            Prompt::Tokens(ids) => {
                self.number(2).list(ids, |writer, id| {
                    writer.number(u64::from(*id));
                });
            }
        }
    }

    fn chat(&mut self, chat: &ChatPrompt) {
        let ChatPrompt { messages, tools, tool_choice, parallel_tool_calls, add_generation_prompt, template_kwargs } =
            chat;
        self.list(messages, |writer, message| match message {
            Value::Object(fields) => writer.number(0).fields(fields),
            other => writer.number(1).json(other),
        });
        self.list(tools, Self::json);
        match tool_choice {
            ToolChoice::Auto => self.number(0),
            ToolChoice::None => self.number(1),
            ToolChoice::Required => self.number(2),
            ToolChoice::Named(name) => self.number(3).text(name),
        };
        self.flag(*parallel_tool_calls).flag(*add_generation_prompt).fields(template_kwargs);
    }

    fn constraint(&mut self, constraint: &Constraint) {
        match constraint {
            Constraint::JsonObject => {
                self.number(0);
            }
            Constraint::JsonSchema(schema) => self.number(1).json(schema),
            Constraint::Regex(expression) => {
                self.number(2).text(expression);
            }
            Constraint::Lark(grammar) => {
                self.number(3).text(grammar);
            }
        }
    }

    fn sampling(&mut self, sampling: &SamplingParams) {
        let SamplingParams {
            temperature,
            top_k,
            top_p,
            min_p,
            typical_p,
            repetition_penalty,
            frequency_penalty,
            presence_penalty,
            logit_bias,
            seed,
        } = sampling;
        self.float(*temperature).count(*top_k).float(*top_p).float(*min_p).float(*typical_p);
        self.float(*repetition_penalty).float(*frequency_penalty).float(*presence_penalty);
        self.list(logit_bias, |writer, (id, bias)| {
            writer.number(u64::from(*id)).float(*bias);
        });
        self.option(*seed, |writer, seed| {
            writer.number(seed.cast_unsigned());
        });
    }
}

/// The key of a generation by this model.
pub fn generation_key(info: &ModelInfo, request: &GenerateRequest) -> Key {
    KeyWriter::new("generation").model(info).generation(request).finish()
}

/// What a vector depends on beside its text.
#[derive(Clone, Copy, Debug)]
pub struct EmbeddingScope<'a> {
    pub account: &'a Account,
    pub model: &'a ModelInfo,
    pub identity: &'a EmbeddingIdentity,
    pub input_type: EmbedInputType,
    pub dimensions: Option<usize>,
    pub truncate: bool,
}

/// The key of one text's vector.
pub fn embedding_key(scope: EmbeddingScope<'_>, input: &EmbedInput) -> Key {
    let EmbeddingScope { account, model, identity, input_type, dimensions, truncate } = scope;
    let EmbeddingIdentity { name, dimensions: length } = identity;
    let mut writer = KeyWriter::new("embedding");
    // Both sides serve the same model, so the policy does not affect the vector.
    writer.text(&account.caller().id).model(model).text(name).count(*length);
    writer.number(match input_type {
        EmbedInputType::Plain => 0,
        EmbedInputType::Query => 1,
        EmbedInputType::Passage => 2,
    });
    writer.option(dimensions, |writer, dimensions| {
        writer.count(dimensions);
    });
    writer.flag(truncate);
    match input {
        EmbedInput::Text(text) => writer.number(0).text(text),
        EmbedInput::Tokens(ids) => writer.number(1).list(ids, |writer, id| {
            writer.number(u64::from(*id));
        }),
    };
    writer.finish()
}

#[cfg(test)]
mod tests;
