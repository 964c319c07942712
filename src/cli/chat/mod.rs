//! `hearth chat`: a conversation in the terminal, with a model in this process or with a server and its documents.
//!
//! With a prompt on the command line or on standard input it answers once and exits; in a terminal it is a dialogue
//! with history and editing. Ctrl-C stops an answer, Ctrl-D ends the dialogue.

mod local;
mod served;

use std::{
    io::{IsTerminal, Read, Write},
    path::Path,
};

use anyhow::{Context, ensure};
use futures_util::{StreamExt, stream::BoxStream};
use hearth_domain::error::{Error, sentence};
use serde_json::{Value, json};

use self::{local::LocalPartner, served::ServedPartner};
use super::client::{Client, find_running, with_server};
use crate::{
    config::{Config, Settings},
    telemetry,
};

#[derive(Clone, Debug, clap::Args)]
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
    /// Answer from the documents of this collection, with sources, as `hearth ask` does; several with commas
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    collection: Vec<String>,
    /// Ask the server at this address; without it, a server that runs on the data directory is asked if it has the model
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    #[command(flatten)]
    pub(super) settings: Settings,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let mut settings = args.settings.clone();
    // A dialogue is not a log: `serve` and `doctor` report what is loaded and how.
    settings.log.get_or_insert_with(|| "warn".to_owned());
    // One sequence at a time, so all of the memory may be its context.
    settings.parallel.get_or_insert(1);
    // A server's model need not exist here.
    let mut config = Config::load(Settings { model: None, ..settings.clone() })?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    if let Some((client, models)) = runtime.block_on(server(&args, &config))? {
        if let Some(partner) = ServedPartner::choose(client, &models, &args) {
            return runtime.block_on(talk(Partner::Served(partner), &args, &config));
        }
        // A model that the server does not have is loaded here, unless the user asked for the server itself.
        ensure!(args.url.is_none() && args.collection.is_empty(), "the server has no such chat model");
    }
    if !args.collection.is_empty() {
        return with_server(settings, async move |client| {
            let models = client.get("/v1/models").await?;
            let partner = ServedPartner::choose(client, &models, &args).context("there is no such chat model")?;
            talk(Partner::Served(partner), &args, &config).await
        });
    }
    config = Config::load(settings)?;
    telemetry::init_logs(&config.log_filter, config.log_format)?;
    let partner = LocalPartner::load(&config, &args)?;
    runtime.block_on(talk(Partner::Local(Box::new(partner)), &args, &config))
}

/// The named server, or the one that runs on the data directory, and its models.
async fn server(args: &Args, config: &Config) -> anyhow::Result<Option<(Client, Value)>> {
    let Some(url) = &args.url else {
        return match find_running(config).await {
            // The conversation can run here as well.
            Err(error) if args.collection.is_empty() => {
                writeln!(std::io::stderr(), "Not asking the server that runs: {}", sentence(&error))?;
                Ok(None)
            }
            found => found,
        };
    };
    let url = url.trim_end_matches('/').trim_end_matches("/v1");
    let client = Client::at(url.to_owned(), config);
    let models = client.get("/v1/models").await?;
    Ok(Some((client, models)))
}

async fn talk(partner: Partner, args: &Args, config: &Config) -> anyhow::Result<()> {
    let mut dialogue = Dialogue { partner, messages: Vec::new(), system: args.system.clone() };
    dialogue.clear();
    match prompt(args.prompt.clone())? {
        Some(prompt) => dialogue.answer(prompt).await,
        None => converse(&mut dialogue, &config.data_dir.join("chat_history")).await,
    }
}

/// The prompt: the argument, the piped input, or, as in `cat page | hearth chat "Summarize:"`, the argument before the
/// input. `None` is a dialogue.
fn prompt(argument: Option<String>) -> anyhow::Result<Option<String>> {
    let mut piped = String::new();
    // Without an argument, anything that is not a terminal is read to its end.
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

/// Whether standard input is a pipe or a file. One inherited from a service or a script is often neither, and may never
/// end.
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

/// Parses a number in this range.
fn between(low: f32, high: f32) -> impl Fn(&str) -> Result<f32, String> + Clone {
    move |text| match text.parse::<f32>() {
        Ok(value) if (low..=high).contains(&value) => Ok(value),
        _ => Err(format!("it must be a number from {low} to {high}")),
    }
}

/// Commands of a dialogue, besides messages.
const COMMANDS: &str =
    "/clear forgets the conversation, /exit or Ctrl-D ends, Ctrl-C stops an answer, /help says this.";

/// Reads lines until the user ends the dialogue.
async fn converse(dialogue: &mut Dialogue, history: &Path) -> anyhow::Result<()> {
    let mut editor = rustyline::DefaultEditor::new()?;
    if history.exists() {
        editor.load_history(history).with_context(|| format!("reading {}", history.display()))?;
    }
    writeln!(std::io::stderr(), "{}. {COMMANDS}", dialogue.partner.name())?;
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
                    if let Err(error) = dialogue.answer(text.to_owned()).await {
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

/// An answer's error; for a model in this process, with advice that fits: there is no server to restart with another
/// context.
fn explained(error: &anyhow::Error) -> String {
    let is_full = error.downcast_ref::<Error>().is_some_and(|error| error.code() == Some("context_length_exceeded"));
    if is_full {
        return "the conversation no longer fits into the model's context: /clear forgets it, and --ctx-size makes more room, as \
                far as the model's own context reaches"
            .to_owned();
    }
    sentence(error)
}

/// The side that answers.
enum Partner {
    Local(Box<LocalPartner>),
    Served(ServedPartner),
}

/// A piece of an answer.
enum Piece {
    Text(String),
    /// Thinking is not the answer.
    Thinking(String),
    /// Follows the answer and belongs to it.
    Sources(String),
    /// Follows the answer and is about it.
    Remark(String),
}

type Pieces = BoxStream<'static, anyhow::Result<Piece>>;

impl Partner {
    fn name(&self) -> String {
        match self {
            Self::Local(partner) => partner.name(),
            Self::Served(partner) => partner.name(),
        }
    }

    async fn answer(&self, messages: &[Value]) -> anyhow::Result<Pieces> {
        match self {
            Self::Local(partner) => partner.answer(messages).await,
            Self::Served(partner) => partner.answer(messages).await,
        }
    }
}

struct Dialogue {
    partner: Partner,
    messages: Vec<Value>,
    system: Option<String>,
}

impl Dialogue {
    fn clear(&mut self) {
        self.messages = self.system.iter().map(|system| json!({"role": "system", "content": system})).collect();
    }

    /// Prints the answer as it arrives, and keeps both sides of the exchange; a failed exchange is forgotten.
    async fn answer(&mut self, text: String) -> anyhow::Result<()> {
        let before = self.messages.len();
        self.messages.push(json!({"role": "user", "content": text}));
        match self.print().await {
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

    async fn print(&self) -> anyhow::Result<String> {
        let mut pieces = self.partner.answer(&self.messages).await?;
        let mut out = std::io::stdout();
        let mut answer = String::new();
        let mut after = Vec::new();
        loop {
            let piece = tokio::select! {
                piece = pieces.next() => piece,
                interrupted = tokio::signal::ctrl_c() => {
                    interrupted?;
                    None
                }
            };
            match piece.transpose()? {
                Some(Piece::Text(text)) => {
                    out.write_all(text.as_bytes())?;
                    out.flush()?;
                    answer.push_str(&text);
                }
                // Standard error is visible and is not piped on.
                Some(Piece::Thinking(text)) => std::io::stderr().write_all(text.as_bytes())?,
                Some(piece) => after.push(piece),
                None => break,
            }
        }
        writeln!(out)?;
        for piece in after {
            match piece {
                Piece::Sources(text) => write!(out, "{text}")?,
                Piece::Remark(text) => writeln!(std::io::stderr(), "{text}")?,
                Piece::Text(_) | Piece::Thinking(_) => {}
            }
        }
        Ok(answer)
    }
}

/// How many tokens an exchange took, and how fast they came.
fn summary(prompt: usize, cached: usize, prompt_rate: f64, answer: usize, answer_rate: f64) -> String {
    format!(
        "prompt {prompt} tokens ({cached} cached), {prompt_rate:.0} tokens/s; answer {answer} tokens, {answer_rate:.1} tokens/s"
    )
}
