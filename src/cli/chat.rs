//! `hearth chat`: a conversation with a model in this process, in the terminal.
//!
//! The same provider as behind the server, so that what is tried here is what is served. With a prompt on
//! the command line or on standard input it answers once and ends; in a terminal it is a dialogue with
//! history and editing. Ctrl-C stops an answer, Ctrl-D ends the dialogue.

use std::{
    io::{IsTerminal, Read, Write},
    path::PathBuf,
};

use anyhow::Context;
use futures_util::StreamExt;
use hearth_domain::{
    Account, ChatPrompt, GenerateEvent, GenerateRequest, Prompt, SamplingParams, Timings, Usage, error::sentence,
};
use serde_json::{Value, json};

use crate::{
    app,
    config::{Config, Settings},
    providers::{ChatModel, local::LocalChat},
    telemetry,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Answer this and end
    prompt: Option<String>,
    /// Instructions that come before the conversation
    #[arg(short, long)]
    system: Option<String>,
    /// 0 always takes the likeliest token
    #[arg(long, default_value_t = 0.7, value_name = "0..2")]
    temperature: f32,
    #[arg(long, default_value_t = 0.95, value_name = "0..1")]
    top_p: f32,
    /// The same seed gives the same answer
    #[arg(long)]
    seed: Option<i64>,
    /// Tokens of one answer
    #[arg(short = 'n', long, value_name = "N")]
    max_tokens: Option<usize>,
    /// Say after each answer how many tokens it took and how fast they came
    #[arg(long)]
    timings: bool,
    #[command(flatten)]
    settings: Settings,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let mut settings = args.settings.clone();
    // A dialogue is not a log: what is loaded and how is for `serve` and `doctor` to say.
    settings.log.get_or_insert_with(|| "warn".to_owned());
    // One sequence at a time, so all of the memory may be its context.
    settings.parallel.get_or_insert(1);
    let config = Config::load(settings)?;
    telemetry::init_logs(&config.log_filter, config.log_format)?;
    let model = app::load_chat(&config)?.with_context(|| app::no_chat_model(&config))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut dialogue = Dialogue::new(model, &args);
    if let Some(prompt) = args.prompt {
        return runtime.block_on(dialogue.answer(prompt));
    }
    if !std::io::stdin().is_terminal() {
        let mut prompt = String::new();
        std::io::stdin().read_to_string(&mut prompt).context("reading the prompt from standard input")?;
        return runtime.block_on(dialogue.answer(prompt.trim_end().to_owned()));
    }
    converse(&runtime, &mut dialogue, &config.data_dir.join("chat_history"))
}

/// Reads lines until the user has had enough.
fn converse(runtime: &tokio::runtime::Runtime, dialogue: &mut Dialogue, history: &PathBuf) -> anyhow::Result<()> {
    let mut editor = rustyline::DefaultEditor::new()?;
    if history.exists() {
        editor.load_history(history).with_context(|| format!("reading {}", history.display()))?;
    }
    writeln!(
        std::io::stderr(),
        "{} — /clear forgets the conversation, /exit or Ctrl-D ends, Ctrl-C stops an answer.",
        dialogue.model.info().id
    )?;
    loop {
        match editor.readline("> ") {
            Ok(line) => match line.trim() {
                "" => {}
                "/exit" | "/quit" => break,
                "/clear" => dialogue.clear(),
                text => {
                    editor.add_history_entry(text)?;
                    if let Err(error) = runtime.block_on(dialogue.answer(text.to_owned())) {
                        writeln!(std::io::stderr(), "hearth: {}", sentence(&error))?;
                    }
                }
            },
            Err(rustyline::error::ReadlineError::Interrupted) => {}
            Err(rustyline::error::ReadlineError::Eof) => break,
            Err(error) => return Err(error.into()),
        }
    }
    if let Some(dir) = history.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    }
    editor.save_history(history).with_context(|| format!("writing {}", history.display()))
}

struct Dialogue {
    model: LocalChat,
    messages: Vec<Value>,
    system: Option<String>,
    sampling: SamplingParams,
    max_tokens: Option<usize>,
    timings: bool,
}

impl Dialogue {
    fn new(model: LocalChat, args: &Args) -> Self {
        let sampling =
            SamplingParams { temperature: args.temperature, top_p: args.top_p, seed: args.seed, ..Default::default() };
        let mut dialogue = Self {
            model,
            messages: Vec::new(),
            system: args.system.clone(),
            sampling,
            max_tokens: args.max_tokens,
            timings: args.timings,
        };
        dialogue.clear();
        dialogue
    }

    fn clear(&mut self) {
        self.messages = self.system.iter().map(|system| json!({"role": "system", "content": system})).collect();
    }

    /// Prints the answer as it comes, and keeps both sides of the exchange; an exchange that failed is
    /// forgotten.
    async fn answer(&mut self, text: String) -> anyhow::Result<()> {
        let before = self.messages.len();
        self.messages.push(json!({"role": "user", "content": text}));
        match self.stream().await {
            Ok(answer) => {
                self.messages.push(json!({"role": "assistant", "content": answer}));
                Ok(())
            }
            Err(error) => {
                self.messages.truncate(before);
                Err(error)
            }
        }
    }

    async fn stream(&self) -> anyhow::Result<String> {
        let mut events = self.model.generate(self.request()).await?;
        let mut out = std::io::stdout();
        let mut answer = String::new();
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                interrupted = tokio::signal::ctrl_c() => {
                    interrupted?;
                    None
                }
            };
            match event.transpose()? {
                Some(GenerateEvent::Delta { text, .. }) => {
                    out.write_all(text.as_bytes())?;
                    out.flush()?;
                    answer.push_str(&text);
                }
                Some(GenerateEvent::Reasoning { text, .. }) => {
                    // Thinking is not the answer: it goes where it can be seen and is not piped on.
                    std::io::stderr().write_all(text.as_bytes())?;
                }
                Some(GenerateEvent::Done { usage, timings }) => {
                    writeln!(out)?;
                    if self.timings {
                        writeln!(std::io::stderr(), "{}", summary(&usage, &timings))?;
                    }
                    return Ok(answer);
                }
                Some(_) => {}
                None => {
                    writeln!(out)?;
                    return Ok(answer);
                }
            }
        }
    }

    fn request(&self) -> GenerateRequest {
        let prompt = Prompt::Chat(ChatPrompt {
            messages: self.messages.clone(),
            add_generation_prompt: true,
            ..ChatPrompt::default()
        });
        GenerateRequest {
            model: self.model.info().id.clone(),
            sampling: self.sampling.clone(),
            max_tokens: self.max_tokens,
            ..GenerateRequest::new(Account::unrecorded(), prompt)
        }
    }
}

fn summary(usage: &Usage, timings: &Timings) -> String {
    let rate = |tokens: usize, seconds: f64| if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 };
    format!(
        "prompt {} tokens ({} cached), {:.0} tokens/s; answer {} tokens, {:.1} tokens/s",
        usage.prompt_tokens,
        usage.cached_tokens,
        rate(usage.prompt_tokens - usage.cached_tokens, timings.prefill.as_secs_f64()),
        usage.completion_tokens,
        rate(usage.completion_tokens.saturating_sub(1), timings.decode.as_secs_f64()),
    )
}
