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
    Account, ChatPrompt, GenerateEvent, GenerateRequest, Prompt, SamplingParams, Timings, Usage,
    error::{Error, sentence},
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
    #[arg(long, default_value_t = 0.7, value_name = "0..2", value_parser = between(0.0, 2.0))]
    temperature: f32,
    /// Sample among the likeliest tokens that have this share together
    #[arg(long, default_value_t = 0.95, value_name = "0..1", value_parser = between(0.0, 1.0))]
    top_p: f32,
    /// The same seed gives the same answer
    #[arg(long)]
    seed: Option<i64>,
    /// Tokens of one answer at most
    #[arg(short = 'n', long, default_value_t = 2048, value_name = "N")]
    max_tokens: usize,
    /// Say after each answer how many tokens it took and how fast they came
    #[arg(long)]
    timings: bool,
    #[command(flatten)]
    pub(super) settings: Settings,
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
    if let Some(prompt) = prompt(args.prompt)? {
        return runtime.block_on(dialogue.answer(prompt));
    }
    converse(&runtime, &mut dialogue, &config.data_dir.join("chat_history"))
}

/// What to answer: the argument, what is piped in, or, as in `cat page | hearth chat "Summarize:"`, one before the other. `None`
/// is a dialogue.
fn prompt(argument: Option<String>) -> anyhow::Result<Option<String>> {
    let mut piped = String::new();
    // Without an argument whatever is not a terminal is read to its end.
    if is_piped() || (argument.is_none() && !std::io::stdin().is_terminal()) {
        std::io::stdin().read_to_string(&mut piped).context("reading the prompt from standard input")?;
    }
    Ok(match (argument, piped.trim_end()) {
        (Some(argument), "") => Some(argument),
        (Some(argument), piped) => Some(format!("{argument}\n\n{piped}")),
        (None, piped) if !std::io::stdin().is_terminal() => Some(piped.to_owned()),
        (None, _) => None,
    })
}

/// Whether standard input is a pipe or a file. What is inherited of a service or a script is often neither, and may never end.
#[cfg(unix)]
fn is_piped() -> bool {
    use std::os::{fd::AsFd, unix::fs::FileTypeExt};
    let file = std::io::stdin().as_fd().try_clone_to_owned().map(std::fs::File::from);
    let kind = file.and_then(|file| file.metadata()).map(|about| about.file_type());
    kind.is_ok_and(|kind| kind.is_fifo() || kind.is_file())
}

#[cfg(not(unix))]
fn is_piped() -> bool {
    !std::io::stdin().is_terminal()
}

/// Parses a number of this range.
fn between(low: f32, high: f32) -> impl Fn(&str) -> Result<f32, String> + Clone {
    move |text| match text.parse::<f32>() {
        Ok(value) if (low..=high).contains(&value) => Ok(value),
        _ => Err(format!("it must be a number from {low} to {high}")),
    }
}

/// What can be typed in a dialogue beside messages.
const COMMANDS: &str =
    "/clear forgets the conversation, /exit or Ctrl-D ends, Ctrl-C stops an answer, /help says this.";

/// Reads lines until the user has had enough.
fn converse(runtime: &tokio::runtime::Runtime, dialogue: &mut Dialogue, history: &PathBuf) -> anyhow::Result<()> {
    let mut editor = rustyline::DefaultEditor::new()?;
    if history.exists() {
        editor.load_history(history).with_context(|| format!("reading {}", history.display()))?;
    }
    writeln!(std::io::stderr(), "{}. {COMMANDS}", dialogue.model.info().id)?;
    loop {
        match editor.readline("> ") {
            Ok(line) => match line.trim() {
                "" => {}
                "/exit" | "/quit" => break,
                "/clear" => dialogue.clear(),
                "/help" | "/?" => writeln!(std::io::stderr(), "{COMMANDS}")?,
                // A path may be a message; a word behind a slash is a mistyped command.
                command if command.starts_with('/') && !command[1..].contains(['/', ' ']) => {
                    writeln!(std::io::stderr(), "There is no {command}. {COMMANDS}")?;
                }
                text => {
                    editor.add_history_entry(text)?;
                    if let Err(error) = runtime.block_on(dialogue.answer(text.to_owned())) {
                        writeln!(std::io::stderr(), "hearth: {}", explained(&error))?;
                    }
                }
            },
            Err(rustyline::error::ReadlineError::Interrupted) => {
                writeln!(std::io::stderr(), "/exit or Ctrl-D ends.")?;
            }
            Err(rustyline::error::ReadlineError::Eof) => break,
            Err(error) => return Err(error.into()),
        }
    }
    if let Some(dir) = history.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    }
    editor.save_history(history).with_context(|| format!("writing {}", history.display()))
}

/// An error of an answer, with what helps here: there is no server to be started with another context.
fn explained(error: &anyhow::Error) -> String {
    let is_full = error.downcast_ref::<Error>().is_some_and(|error| error.code() == Some("context_length_exceeded"));
    if is_full {
        return "the conversation no longer fits into the model's context: /clear forgets it, and --ctx-size makes more room, as \
                far as the model's own context reaches"
            .to_owned();
    }
    sentence(error)
}

struct Dialogue {
    model: LocalChat,
    messages: Vec<Value>,
    system: Option<String>,
    sampling: SamplingParams,
    max_tokens: usize,
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
            max_tokens: Some(self.max_tokens),
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
