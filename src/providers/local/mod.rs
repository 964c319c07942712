//! The chat model in this process: text in, engine tokens through, text out.
//!
//! Everything that deals with text happens here, at the engine's edge: the chat template, the tokenizer, the grammar
//! compiled from a schema, stop strings, tool calls. Preparing a request can take milliseconds (a long prompt, a large
//! schema) and runs where `crates/text/src/work.rs` says. A prompt is tokenized no further than its refusal requires.
//! The returned stream owns the engine's stream, so dropping one cancels the other.

mod answer;
mod choice;
mod grammars;

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::{FutureExt, StreamExt, future::BoxFuture};
use hearth_domain::{
    ChatPrompt, GenerateRequest, ModelInfo, Prompt, ToolChoice,
    error::{Error, Result},
    quote::Quote,
    usage::ServedBy,
};
use hearth_kernels::kv::KvType;
use hearth_text::{
    chat_template::{
        ChatTemplate,
        guard::{guarded, unescaped},
    },
    detokenizer::Detokenizer,
    grammar::{ArgumentsCheck, CompiledConstraint, ToolCallRules},
    tokenizer::Tokenizer,
    tool_calls::{OutputParser, Thinking, ToolFormat},
    work::{Wanted, off_the_async_threads},
};

use self::answer::LocalAnswer;
pub use self::grammars::Grammars;
use super::{ChatModel, GenerateStream, PromptTokenizer};
use crate::engine::{Engine, SequenceRequest};

/// Prompt tokens whose scores all choices of a request may echo together.
const ECHOED_TOKENS_MAX: usize = 64 * 1024;

/// A clonable handle on a loaded chat model.
#[derive(Clone, Debug)]
pub struct LocalChat(Arc<Parts>);

/// The parts of a local chat model.
#[derive(Debug)]
pub struct Parts {
    pub info: ModelInfo,
    pub tokenizer: Tokenizer,
    pub template: ChatTemplate,
    pub grammars: Grammars,
    pub engine: Engine,
    /// Callers share the KV blocks of common prompt prefixes, and can tell from the cached token counts what others
    /// have sent.
    pub callers_share_prefixes: bool,
    /// The device: `cpu`, `cuda` or `metal`.
    pub device: &'static str,
    /// Storage type of its keys and values.
    pub kv_type: KvType,
    /// Memory that they take.
    pub kv_bytes: u64,
    /// Memory of the weights that were copied into the order in which the processor reads them.
    pub repacked_bytes: u64,
}

impl LocalChat {
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    pub fn engine(&self) -> &Engine {
        &self.0.engine
    }

    pub fn device(&self) -> &'static str {
        self.0.device
    }

    pub fn kv_type(&self) -> KvType {
        self.0.kv_type
    }

    pub fn kv_bytes(&self) -> u64 {
        self.0.kv_bytes
    }

    pub fn repacked_bytes(&self) -> u64 {
        self.0.repacked_bytes
    }
}

/// Added to the refusal of a prompt that was not counted to its end.
const NOT_COUNTED: &str = "The prompt was not counted to its end: it has at least that many tokens.";

/// A request that is ready for the engine, with what turns its tokens back into text.
struct Prepared {
    sequence: SequenceRequest,
    prompt: answer::PromptFacts,
    choices: Vec<choice::ChoiceDecoder>,
}

/// A prompt as the model reads it.
struct PromptTokens {
    text: String,
    ids: Vec<u32>,
    /// How many tokens it has, at least: a prompt that is far too long is tokenized partly or not at all.
    count: usize,
    /// The field that it came from.
    param: &'static str,
}

impl PromptTokens {
    fn is_whole(&self) -> bool {
        self.ids.len() == self.count
    }
}

impl Parts {
    /// A prompt is counted exactly up to this multiple of the context, so that a refusal says by how much it is too
    /// long.
    const COUNTED: usize = 2;

    fn prepare(&self, request: GenerateRequest, wanted: &Wanted) -> Result<Prepared> {
        let prompt = self.prompt_tokens(&request.prompt, wanted)?;
        let context_length = self.engine.config().context_length;
        let room = context_length.saturating_sub(prompt.count);
        if room == 0 && (request.max_tokens != Some(0) || !prompt.is_whole()) {
            let error = Error::context_length_exceeded(prompt.count, context_length, prompt.param);
            return Err(if prompt.is_whole() { error } else { error.with_note(NOT_COUNTED) });
        }
        let PromptTokens { text, ids: tokens, .. } = prompt;
        if request.echo && request.logprobs.is_some() {
            check_echoes(request.n, tokens.len())?;
        }
        let thinking = match &request.prompt {
            Prompt::Chat(_) => Thinking::detect(self.template.source(), &text),
            Prompt::Text(_) | Prompt::Tokens(_) => Thinking::Never,
        };
        // A constrained answer that follows the reasoning must still have room.
        let thinking_tokens = request.max_tokens.unwrap_or(room).min(room) / 2;
        let compiled = self.compiled(&request, thinking, thinking_tokens)?;
        let checks = compiled.as_ref().map(|compiled| compiled.checks().clone()).unwrap_or_default();
        let constraints = compiled.map(|compiled| compiled.answers(request.n)).unwrap_or_default();
        let choice = |index| self.choice(index, &request, thinking, tokens.last().copied(), checks.clone());
        let choices = (0..request.n).map(choice).collect();
        let record = request.account.begin_record(&self.info.id, ServedBy::Local { device: self.device.to_owned() });
        let prompt = answer::PromptFacts {
            num_tokens: tokens.len(),
            echo: request.echo.then(|| answer::Echo { text, token_ids: tokens.clone() }),
            tokenizer: self.tokenizer.clone(),
            record: record.clone(),
        };
        let sequence = SequenceRequest {
            prompt: tokens,
            sampling: request.sampling,
            max_new_tokens: request.max_tokens.map(|tokens| tokens.min(room)),
            min_new_tokens: request.min_tokens,
            end_tokens: self.tokenizer.end_of_generation().into(),
            ignore_eos: request.ignore_eos,
            stop_tokens: request.stop_token_ids,
            logprobs: request.logprobs,
            prompt_logprobs: request.echo && request.logprobs.is_some(),
            constraints,
            caller: request.account.fairness_key().to_owned(),
            prefix_scope: if self.callers_share_prefixes { "" } else { &request.account.caller().id }.into(),
            record,
            deadline: request.deadline,
            n: request.n,
        };
        Ok(Prepared { sequence, prompt, choices })
    }

    /// The constraint of the choices, if they have one.
    fn compiled(
        &self,
        request: &GenerateRequest,
        thinking: Thinking,
        thinking_tokens: usize,
    ) -> Result<Option<CompiledConstraint>> {
        let compiled = match (&request.constraint, tools(&request.prompt)) {
            (Some(constraint), _) => {
                self.grammars.compiler()?.compile_after_thinking(constraint, thinking, thinking_tokens).map(Some)
            }
            (None, Some(chat)) => self.grammars.compiler()?.compile_tool_calls(&ToolCallRules {
                tools: &chat.tools,
                choice: &chat.tool_choice,
                // A named function is called exactly once, as in the contract.
                parallel: chat.parallel_tool_calls && !matches!(chat.tool_choice, ToolChoice::Named(_)),
                format: self.tool_format(),
                thinking,
                thinking_tokens,
            }),
            (None, None) => Ok(None),
        }?;
        if let Some(compiled) = &compiled {
            request.account.add_unenforced(compiled.unenforced());
        }
        Ok(compiled)
    }

    fn tool_format(&self) -> ToolFormat {
        ToolFormat::detect(self.template.source())
    }

    fn choice(
        &self,
        index: usize,
        request: &GenerateRequest,
        thinking: Thinking,
        last_prompt_token: Option<u32>,
        checks: Arc<HashMap<String, ArgumentsCheck>>,
    ) -> choice::ChoiceDecoder {
        let tools = tools(&request.prompt);
        let parser = (tools.is_some() || thinking != Thinking::Never).then(|| {
            let names = tools.map_or(&[][..], |chat| &chat.tools).iter();
            let names = names.filter_map(|tool| tool["function"]["name"].as_str()).map(str::to_owned).collect();
            OutputParser::new(tools.map(|_| self.tool_format()), names, thinking)
        });
        // A prompt to be continued decides whether the first token's leading space belongs to the answer; the
        // template's own last token does not. Some of the markers that the parser looks for are special tokens.
        let before = if matches!(request.prompt, Prompt::Chat(_)) { None } else { last_prompt_token };
        let detokenizer = Detokenizer::after(self.tokenizer.clone(), before, parser.is_some());
        let wanted = choice::ChoiceOptions {
            logprobs: request.logprobs.is_some(),
            token_ids: request.return_token_ids,
            min_tokens: request.min_tokens,
            only_calls: tools.is_some_and(|chat| chat.tool_choice != ToolChoice::Auto),
        };
        choice::ChoiceDecoder::new(index, self.tokenizer.clone(), detokenizer, request.stop.clone(), parser, wanted)
            .with_checks(checks)
    }

    fn prompt_tokens(&self, prompt: &Prompt, wanted: &Wanted) -> Result<PromptTokens> {
        match prompt {
            Prompt::Chat(chat) => {
                let guarded = guarded(chat, &self.tokenizer)?;
                let mut prompt = match guarded {
                    None => self.first_tokens(self.render(chat)?, false, None, "messages", wanted)?,
                    Some((chat, mark)) => {
                        let text = unescaped(self.render(&chat)?, mark);
                        self.first_tokens(text, false, Some(mark), "messages", wanted)?
                    }
                };
                // Most templates write the BOS token; where one does not, the model still needs it.
                if let Some(bos) = self.tokenizer.bos()
                    && self.tokenizer.adds_bos()
                    && prompt.ids.first() != Some(&bos)
                {
                    prompt.ids.insert(0, bos);
                    prompt.count += 1;
                }
                Ok(prompt)
            }
            Prompt::Text(text) => self.first_tokens(text.clone(), true, None, "prompt", wanted),
            Prompt::Tokens(tokens) => {
                let vocab_size = self.engine.vocab_size();
                if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocab_size) {
                    return Err(Error::invalid(
                        "prompt",
                        format!("Token id {token} is not in the vocabulary of {vocab_size} tokens."),
                    ));
                }
                let text = self.tokenizer.decode(tokens, false);
                Ok(PromptTokens { text, ids: tokens.clone(), count: tokens.len(), param: "prompt" })
            }
        }
    }

    /// The tokens of a text, as far as it could fit; of a guarded text, without its marks.
    fn first_tokens(
        &self,
        text: String,
        add_special: bool,
        mark: Option<char>,
        param: &'static str,
        wanted: &Wanted,
    ) -> Result<PromptTokens> {
        let enough = Self::COUNTED * self.engine.config().context_length;
        // A mark is three bytes and no text; a prompt that is too long by that much is refused by its token count.
        let fewest = if mark.is_none() { self.tokenizer.fewest_tokens(&text) } else { 0 };
        if fewest > enough {
            return Ok(PromptTokens { text, ids: Vec::new(), count: fewest, param });
        }
        let go_on = || wanted.still();
        let first = match mark {
            None => self.tokenizer.encode_first(&text, add_special, true, enough, &go_on)?,
            Some(mark) => self.tokenizer.encode_first_marked(&text, mark, enough, &go_on)?,
        };
        let text = mark.map(|mark| text.replace(mark, "")).unwrap_or(text);
        wanted.check()?;
        // The unread rest is at least one token.
        let count = first.ids.len() + usize::from(!first.is_whole);
        Ok(PromptTokens { text, ids: first.ids, count, param })
    }

    fn render(&self, prompt: &ChatPrompt) -> Result<String> {
        self.template.render_prompt(prompt).map_err(Error::from)
    }

    fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>> {
        self.tokenizer.encode(text, add_special, parse_special).map_err(Error::from)
    }
}

/// Each choice echoes the prompt's scores, which take a few kilobytes per token.
fn check_echoes(choices: usize, prompt_tokens: usize) -> Result<()> {
    let tokens = choices.saturating_mul(prompt_tokens);
    if choices == 1 || tokens <= ECHOED_TOKENS_MAX {
        return Ok(());
    }
    let message = format!(
        "`n` is {choices} and the prompt has {prompt_tokens} tokens, so `echo` with `logprobs` would give the scores of \
         {tokens} tokens; with more than one choice it gives at most {ECHOED_TOKENS_MAX}. Ask for fewer choices."
    );
    Err(Error::invalid("n", message).with_code("invalid_value"))
}

/// The conversation, if it has callable tools.
fn tools(prompt: &Prompt) -> Option<&ChatPrompt> {
    match prompt {
        Prompt::Chat(chat) if !chat.tools.is_empty() && chat.tool_choice != ToolChoice::None => Some(chat),
        _ => None,
    }
}

impl ChatModel for LocalChat {
    fn info(&self) -> &ModelInfo {
        &self.0.info
    }

    fn generate(&self, request: GenerateRequest) -> BoxFuture<'_, Result<GenerateStream>> {
        let parts = self.0.clone();
        async move {
            let prepared = {
                let parts = parts.clone();
                off_the_async_threads(request.prompt.bytes(), move |wanted| parts.prepare(request, wanted)).await?
            };
            let tokens = parts.engine.submit(prepared.sequence)?;
            Ok(LocalAnswer::new(tokens, prepared.choices, prepared.prompt).boxed())
        }
        .boxed()
    }

    fn quotes(&self, request: &GenerateRequest) -> Result<Vec<Quote>> {
        let parts = &self.0;
        let prompt = parts.prompt_tokens(&request.prompt, &Wanted::always())?;
        let served_by = ServedBy::Local { device: parts.device.to_owned() };
        let mut quote = Quote::new(served_by, &parts.info, prompt.count, request.n, request.max_tokens);
        quote.is_exact = prompt.is_whole();
        let stats = parts.engine.stats();
        let times = |per_token: Duration, tokens: usize| per_token.mul_f64(tokens as f64);
        let prefill = times(stats.prefill_per_token, prompt.count);
        quote.compute = (prefill, prefill + times(stats.decode_per_token, quote.max_completion_tokens));
        if stats.waiting_requests > 0 || stats.running_sequences >= parts.engine.config().max_running_sequences {
            quote.wait = stats.estimated_wait;
        }
        Ok(vec![quote])
    }

    fn tokenizer(&self) -> Option<&dyn PromptTokenizer> {
        Some(self)
    }
}

impl PromptTokenizer for LocalChat {
    fn render(&self, prompt: &ChatPrompt) -> Result<String> {
        self.0.render(prompt)
    }

    fn tokenize(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>> {
        self.0.encode(text, add_special, parse_special)
    }

    fn detokenize(&self, tokens: &[u32]) -> Result<String> {
        let vocab_size = self.0.tokenizer.vocab_size();
        match tokens.iter().find(|&&token| token as usize >= vocab_size) {
            Some(token) => Err(Error::invalid(
                "tokens",
                format!("Token id {token} is not in the vocabulary of {vocab_size} tokens."),
            )),
            None => Ok(self.0.tokenizer.decode(tokens, false)),
        }
    }

    fn token_bytes(&self, token: u32) -> Option<Vec<u8>> {
        self.0.tokenizer.token_bytes(token).map(|bytes| bytes.into_owned())
    }
}
