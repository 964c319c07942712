//! Help in two lengths: `--help` shows a command's own flags and the settings that most people need, `--help-all` every
//! setting. Hidden flags still work.

use std::{collections::HashSet, ffi::OsString};

use clap::{Arg, Args, Command};

use crate::config::Settings;

const ALL: &str = "--help-all";

/// Settings that `hearth serve --help` shows.
const OF_SERVE: [&str; 16] = [
    "model",
    "embedding_model",
    "rerank_model",
    "models_dir",
    "ctx_size",
    "parallel",
    "threads",
    "device",
    "host",
    "port",
    "api_key",
    "allowed_host",
    "data_dir",
    "config",
    "log",
    "offline",
];

/// Settings that the other commands show.
const OF_OTHERS: [&str; 7] = ["model", "embedding_model", "models_dir", "ctx_size", "threads", "data_dir", "api_key"];

/// The arguments with `--help` in place of `--help-all`, and whether that was requested.
pub(super) fn wants_all(arguments: Vec<OsString>) -> (Vec<OsString>, bool) {
    let end = arguments.iter().position(|argument| argument == "--").unwrap_or(arguments.len());
    let mut wants_all = false;
    let replaced = arguments.into_iter().enumerate().map(|(place, argument)| {
        if place < end && argument == ALL {
            wants_all = true;
            return "--help".into();
        }
        argument
    });
    let replaced = replaced.collect();
    (replaced, wants_all)
}

/// The command with only the most used settings in its help, and a note about the others.
pub(super) fn shortened(command: Command) -> Command {
    let settings = Settings::augment_args(Command::new("settings"));
    let settings: HashSet<String> = settings.get_arguments().map(|argument| argument.get_id().to_string()).collect();
    command.mut_subcommands(|subcommand| shorten(subcommand, &settings))
}

fn shorten(command: Command, settings: &HashSet<String>) -> Command {
    let shown: &[&str] = if command.get_name() == "serve" { &OF_SERVE } else { &OF_OTHERS };
    // Other commands' own flags do not share a setting's name, except for a few that mean the same.
    let has_settings =
        command.get_arguments().filter(|argument| settings.contains(argument.get_id().as_str())).count() > shown.len();
    let command = command.mut_subcommands(|subcommand| shorten(subcommand, settings));
    if !has_settings {
        return command;
    }
    let hide = |argument: Arg| {
        let id = argument.get_id().as_str();
        if settings.contains(id) && !shown.contains(&id) { argument.hide(true) } else { argument }
    };
    command
        .mut_args(hide)
        .after_help(format!("{ALL} shows every setting; each is also an environment variable and a key of --config."))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    fn help(command: Command, name: &str) -> String {
        let mut command = command;
        command.build();
        command.find_subcommand_mut(name).expect("there is such a command").render_long_help().to_string()
    }

    #[test]
    fn help_is_short_unless_all_is_asked_for() {
        for (name, has, has_not) in [
            ("serve", "--port", "--jwt-jwks"),
            ("ask", "--grounding", "--jwt-jwks"),
            ("recover", "--data-dir", "--jwt-jwks"),
            ("chat", "--temperature", "--max-queue"),
        ] {
            let short = help(shortened(Cli::command()), name);
            assert!(short.contains(has) && !short.contains(has_not) && short.contains(ALL), "{name}: {short}");
            let all = help(Cli::command(), name);
            assert!(2 * short.lines().count() < all.lines().count(), "{name}: {short}");
            assert!(all.contains(has) && all.contains(has_not), "{name}: {all}");
        }
    }

    #[test]
    fn help_all_is_help_before_the_end_of_flags() {
        let arguments = |given: &[&str]| given.iter().map(OsString::from).collect::<Vec<_>>();
        assert_eq!(
            wants_all(arguments(&["hearth", "serve", "--help-all"])),
            (arguments(&["hearth", "serve", "--help"]), true)
        );
        let behind = arguments(&["hearth", "ask", "--", "--help-all"]);
        assert_eq!(wants_all(behind.clone()), (behind, false));
    }
}
