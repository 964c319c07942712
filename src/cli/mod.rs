//! The command line: one subcommand per file. Standard output is the answer; everything else goes to standard error.

mod backup;
mod bench;
mod chat;
mod client;
mod connect;
mod doctor;
mod documents;
mod embed;
mod extract_child;
mod help;
mod keys;
mod models;
mod ps;
mod pull;
mod pull_auto;
mod run;
mod serve;
mod usage;
mod usage_plot;

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use hearth_text::extract::sandbox;

use crate::config::Settings;

/// Self-hosted inference: embeddings and a quantized chat model in one process, under the OpenAI contract.
#[derive(Debug, Parser)]
#[command(name = "hearth", version, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a chat model and an embedding model over HTTP
    Serve(Box<Settings>),
    /// Talk to a chat model, or to documents: here, or at a server
    Chat(Box<chat::Args>),
    /// Talk to a model by its name, which is fetched first if it is not here
    Run(Box<run::Args>),
    /// Print the embeddings of texts
    Embed(Box<embed::Args>),
    /// Put documents in, from files and directories
    Ingest(Box<documents::ingest::Args>),
    /// Answer a question from documents
    Ask(Box<documents::ask::Args>),
    /// Find passages in documents
    Search(Box<documents::search::Args>),
    /// List or delete the documents of a collection
    Documents(documents::manage::Args),
    /// List or delete collections of documents
    Collections(Box<documents::collections::Args>),
    /// Make a collection's vectors anew with the embedding model that is served now
    Reindex(Box<documents::reindex::Args>),
    /// Save what can be read of a damaged data directory
    Recover(Box<documents::recover::Args>),
    /// Copy a data directory, also while a server runs
    Backup(Box<backup::BackupArgs>),
    /// Make a data directory of a backup
    Restore(Box<backup::RestoreArgs>),
    /// Say what requests came to, by day, caller, model and provider
    Usage(Box<usage::Args>),
    /// Make, list and revoke API keys, also while a server runs
    Keys(keys::Args),
    /// Fetch a model from the hub
    Pull(pull::Args),
    /// List the models that are here, and those known by name
    List(models::ListArgs),
    /// Take a model out of the models directory
    Rm(models::RemoveArgs),
    /// List the models that the running server serves
    Ps(Box<ps::Args>),
    /// Print the settings with which a client uses the running server
    Connect(Box<connect::Args>),
    /// List, show, import and remove models
    Models(models::Args),
    /// Measure prefill, decode and concurrent streams
    Bench(Box<bench::Args>),
    /// Say what this machine is, what is configured, and what is wrong
    Doctor(Box<doctor::Args>),
    /// Read one document for the process that started this one
    #[command(name = sandbox::CHILD_COMMAND, hide = true)]
    ExtractChild,
}

impl Cli {
    /// Parses arguments, program name first; on a mistake it prints usage and ends the process, as clap does.
    pub fn parse_arguments(arguments: impl IntoIterator<Item = OsString>) -> Self {
        let (arguments, wants_all) = help::wants_all(arguments.into_iter().map(long_form).collect());
        let command = if wants_all { Self::command() } else { help::shortened(Self::command()) };
        Self::from_arg_matches(&command.get_matches_from(arguments)).unwrap_or_else(|error| error.exit())
    }

    pub fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Serve(settings) => serve::run(*settings),
            Command::Chat(args) => chat::run(*args),
            Command::Run(args) => run::run(*args),
            Command::Embed(args) => embed::run(*args),
            Command::Ingest(args) => documents::ingest::run(*args),
            Command::Ask(args) => documents::ask::run(*args),
            Command::Search(args) => documents::search::run(*args),
            Command::Documents(args) => documents::manage::run(args),
            Command::Collections(args) => documents::collections::run(*args),
            Command::Reindex(args) => documents::reindex::run(*args),
            Command::Recover(args) => documents::recover::run(*args),
            Command::Backup(args) => backup::back_up(&args),
            Command::Restore(args) => backup::restore(&args),
            Command::Usage(args) => usage::run(*args),
            Command::Keys(args) => keys::run(args),
            Command::Pull(args) => pull::run(args),
            Command::List(args) => models::run_list(args),
            Command::Rm(args) => models::run_remove(args),
            Command::Ps(args) => ps::run(*args),
            Command::Connect(args) => connect::run(*args),
            Command::Models(args) => models::run(args),
            Command::Bench(args) => bench::run(*args),
            Command::Doctor(args) => doctor::run(*args),
            Command::ExtractChild => extract_child::run(),
        }
    }
}

/// llama-server has short flags of several letters, which clap would read as several flags.
fn long_form(argument: OsString) -> OsString {
    match argument.to_str() {
        Some("-np") => "--parallel".into(),
        Some("-ctk") => "--cache-type".into(),
        Some("-ngl") => "--n-gpu-layers".into(),
        Some("-fa") => "--flash-attn".into(),
        _ => argument,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn llama_servers_short_flags_are_understood() {
        let arguments = ["hearth", "serve", "-np", "3", "-fa", "on", "-c", "512", "-t", "2"];
        let cli = Cli::parse_arguments(arguments.map(OsString::from));
        let Command::Serve(settings) = cli.command else { panic!("serve was asked for") };
        assert_eq!((settings.parallel, settings.ctx_size, settings.threads), (Some(3), Some(512), Some(2)));
    }
}
