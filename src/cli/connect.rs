//! `hearth connect NAME`: the settings a client needs to use the running server, to copy into the client's own.
//!
//! The formats follow each client's documentation in November 2026. The command changes nothing in a client, whose
//! settings may hold more than these.

use std::io::Write;

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::client::served_models;
use crate::config::{Config, Settings};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The client; without one, the clients that there are settings for
    #[arg(value_name = "NAME")]
    client: Option<String>,
    #[command(flatten)]
    settings: Settings,
}

/// What a client needs to know about a server.
struct Target {
    /// Ends in `/v1`.
    base_url: String,
    /// Clients that insist on a key must be given one.
    api_key: String,
    chat: Option<(String, u64)>,
    embedding: Option<String>,
}

/// Where the settings go, and their text.
struct Recipe {
    place: &'static str,
    text: String,
}

/// Writes the settings for one client.
type Writer = fn(&Target) -> anyhow::Result<Recipe>;

const CLIENTS: [(&str, Writer); 9] = [
    ("aider", aider),
    ("continue", continue_dev),
    ("curl", curl),
    ("langchain", langchain),
    ("litellm", litellm),
    ("openai", openai),
    ("opencode", opencode),
    ("openwebui", open_webui),
    ("zed", zed),
];

/// Clients whose dialect this server does not speak.
const NOT_YET: [(&str, &str); 2] = [("claude", "Anthropic's messages"), ("codex", "OpenAI's responses")];

pub fn run(args: Args) -> anyhow::Result<()> {
    let names = || CLIENTS.map(|(name, _)| name).join(", ");
    let Some(name) = args.client else {
        writeln!(std::io::stdout(), "{}", names())?;
        return Ok(());
    };
    if let Some((_, dialect)) = NOT_YET.iter().find(|(client, _)| *client == name) {
        bail!("{name} speaks {dialect}, which Hearth does not serve yet; there are settings for {}", names());
    }
    let Some((_, recipe)) = CLIENTS.iter().find(|(client, _)| *client == name) else {
        bail!("there are no settings for {name:?}, only for {}", names());
    };
    let config = Config::load(args.settings)?;
    let (client, models) = served_models(&config)?;
    let key = config.callers.api_keys.first().cloned().unwrap_or_else(|| "none".to_owned());
    let Recipe { place, text } = recipe(&Target::of(client.url(), key, &models))?;
    writeln!(std::io::stderr(), "{place}:\n")?;
    writeln!(std::io::stdout(), "{}", text.trim_end())?;
    Ok(())
}

impl Target {
    fn of(url: &str, api_key: String, models: &Value) -> Self {
        let first = |what: &str| models["data"].as_array()?.iter().find(|model| model["capabilities"][what] == true);
        let name = |model: &Value| model["id"].as_str().unwrap_or_default().to_owned();
        Self {
            base_url: format!("{url}/v1"),
            api_key,
            chat: first("chat").map(|model| (name(model), model["context_length"].as_u64().unwrap_or_default())),
            embedding: first("embeddings").map(name),
        }
    }

    fn chat(&self) -> anyhow::Result<(&str, u64)> {
        let (name, context) = self.chat.as_ref().context("the server serves no chat model")?;
        Ok((name, *context))
    }
}

fn aider(target: &Target) -> anyhow::Result<Recipe> {
    let (model, _) = target.chat()?;
    let text =
        format!("OPENAI_API_BASE={} OPENAI_API_KEY={} aider --model openai/{model}", target.base_url, target.api_key);
    Ok(Recipe { place: "In a terminal", text })
}

fn continue_dev(target: &Target) -> anyhow::Result<Recipe> {
    let (model, context) = target.chat()?;
    let mut text = format!(
        "name: Hearth\nversion: 1.0.0\nschema: v1\nmodels:\n  - name: {model}\n    provider: openai\n    model: {model}\n    \
         apiBase: {url}\n    apiKey: {key}\n    roles: [chat, edit, apply]\n    defaultCompletionOptions:\n      \
         contextLength: {context}\n",
        url = target.base_url,
        key = target.api_key
    );
    if let Some(embedding) = &target.embedding {
        text.push_str(&format!(
            "  - name: {embedding}\n    provider: openai\n    model: {embedding}\n    apiBase: {}\n    apiKey: {}\n    roles: \
             [embed]\n",
            target.base_url, target.api_key
        ));
    }
    Ok(Recipe { place: "In ~/.continue/config.yaml", text })
}

fn curl(target: &Target) -> anyhow::Result<Recipe> {
    let (model, _) = target.chat()?;
    let body = json!({"model": model, "messages": [{"role": "user", "content": "Hello"}]});
    let text = format!(
        "curl {}/chat/completions -H 'authorization: Bearer {}' -H 'content-type: application/json' \\\n  -d '{body}'",
        target.base_url, target.api_key
    );
    Ok(Recipe { place: "In a terminal", text })
}

fn langchain(target: &Target) -> anyhow::Result<Recipe> {
    let (model, _) = target.chat()?;
    let mut text = format!(
        "from langchain_openai import ChatOpenAI, OpenAIEmbeddings\n\nchat = ChatOpenAI(base_url={:?}, api_key={:?}, model={model:?})\n",
        target.base_url, target.api_key
    );
    if let Some(embedding) = &target.embedding {
        // Otherwise it sends token ids of OpenAI's tokenizer, which mean other words here.
        text.push_str(&format!(
            "embeddings = OpenAIEmbeddings(\n    base_url={:?}, api_key={:?}, model={embedding:?},\n    \
             check_embedding_ctx_length=False,  # texts, not token ids of another tokenizer\n)\n",
            target.base_url, target.api_key
        ));
    }
    Ok(Recipe { place: "In Python", text })
}

fn litellm(target: &Target) -> anyhow::Result<Recipe> {
    let (model, _) = target.chat()?;
    let text = format!(
        "model_list:\n  - model_name: {model}\n    litellm_params:\n      model: openai/{model}\n      api_base: {}\n      api_key: \
         {}\n",
        target.base_url, target.api_key
    );
    Ok(Recipe { place: "In LiteLLM's config.yaml", text })
}

fn openai(target: &Target) -> anyhow::Result<Recipe> {
    let text = format!("export OPENAI_BASE_URL={}\nexport OPENAI_API_KEY={}", target.base_url, target.api_key);
    Ok(Recipe { place: "In the environment of a program that uses OpenAI's SDK", text })
}

fn opencode(target: &Target) -> anyhow::Result<Recipe> {
    let (model, context) = target.chat()?;
    let settings = json!({
        "$schema": "https://opencode.ai/config.json",
        "provider": {"hearth": {
            "npm": "@ai-sdk/openai-compatible",
            "name": "Hearth",
            "options": {"baseURL": target.base_url, "apiKey": target.api_key},
            "models": {model: {"name": model, "limit": {"context": context, "output": context / 4}}},
        }},
        "model": format!("hearth/{model}"),
    });
    Ok(Recipe {
        place: "In ~/.config/opencode/opencode.json, or opencode.json of a project",
        text: format!("{settings:#}"),
    })
}

fn open_webui(target: &Target) -> anyhow::Result<Recipe> {
    let text = format!("OPENAI_API_BASE_URL={}\nOPENAI_API_KEY={}", target.base_url, target.api_key);
    Ok(Recipe { place: "In Open WebUI's environment (from a container, name this machine instead of 127.0.0.1)", text })
}

fn zed(target: &Target) -> anyhow::Result<Recipe> {
    let (model, context) = target.chat()?;
    let settings = json!({"language_models": {"openai_compatible": {"Hearth": {
        "api_url": target.base_url,
        "available_models": [{"name": model, "display_name": model, "max_tokens": context}],
    }}}});
    Ok(Recipe {
        place: "In Zed's settings.json; the key goes into the environment as HEARTH_API_KEY",
        text: format!("{settings:#}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_name_the_server_its_model_and_its_key() {
        let models = json!({"data": [
            {"id": "vectors", "capabilities": {"embeddings": true}},
            {"id": "small", "context_length": 4096, "capabilities": {"chat": true}},
        ]});
        let target = Target::of("http://127.0.0.1:8080", "a-secret".to_owned(), &models);
        for (name, recipe) in CLIENTS {
            let text = recipe(&target).expect("there is a chat model").text;
            assert!(text.contains("http://127.0.0.1:8080/v1"), "{name}: {text}");
            assert!(text.contains("small") || matches!(name, "openai" | "openwebui"), "{name}: {text}");
            assert!(text.contains("a-secret") || name == "zed", "{name}: {text}");
        }
        for (name, recipe) in CLIENTS.iter().filter(|(name, _)| ["opencode", "zed"].contains(name)) {
            let text = recipe(&target).expect("there is a chat model").text;
            assert!(serde_json::from_str::<Value>(&text).is_ok(), "{name} reads JSON: {text}");
            assert!(text.contains("4096"), "{name}: {text}");
        }
        let without = Target::of("http://127.0.0.1:8080", String::new(), &json!({"data": []}));
        assert!(opencode(&without).is_err() && openai(&without).is_ok());
    }
}
