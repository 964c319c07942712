//! A model in this process: the same provider as behind the server, so that what is tried here is what is served.

use anyhow::Context;
use futures_util::{StreamExt, future::ready};
use hearth_domain::{Account, ChatPrompt, GenerateEvent, GenerateRequest, Prompt, SamplingParams, Timings, Usage};
use serde_json::Value;

use super::{Args, Piece, Pieces, summary};
use crate::{
    app,
    config::Config,
    providers::{ChatModel, local::LocalChat},
};

pub(super) struct LocalPartner {
    model: LocalChat,
    sampling: SamplingParams,
    max_tokens: usize,
    timings: bool,
}

impl LocalPartner {
    pub(super) fn load(config: &Config, args: &Args) -> anyhow::Result<Self> {
        let model = app::load_chat(config)?.with_context(|| app::no_chat_model(config))?;
        let sampling =
            SamplingParams { temperature: args.temperature, top_p: args.top_p, seed: args.seed, ..Default::default() };
        Ok(Self { model, sampling, max_tokens: args.max_tokens, timings: args.timings })
    }

    pub(super) fn name(&self) -> String {
        self.model.info().id.clone()
    }

    pub(super) async fn answer(&self, messages: &[Value]) -> anyhow::Result<Pieces> {
        let prompt = Prompt::Chat(ChatPrompt {
            messages: messages.to_vec(),
            add_generation_prompt: true,
            ..ChatPrompt::default()
        });
        let request = GenerateRequest {
            sampling: self.sampling.clone(),
            max_tokens: Some(self.max_tokens),
            ..GenerateRequest::new(Account::unrecorded(), prompt)
        };
        let events = self.model.generate(request).await?;
        let timings = self.timings;
        let pieces = events.filter_map(move |event| {
            ready(match event {
                Ok(GenerateEvent::Delta { text, .. }) => Some(Ok(Piece::Text(text))),
                Ok(GenerateEvent::Reasoning { text, .. }) => Some(Ok(Piece::Thinking(text))),
                Ok(GenerateEvent::Done { usage, timings: took }) if timings => {
                    Some(Ok(Piece::Remark(remark(&usage, &took))))
                }
                Ok(_) => None,
                Err(error) => Some(Err(error.into())),
            })
        });
        Ok(pieces.boxed())
    }
}

fn remark(usage: &Usage, timings: &Timings) -> String {
    let rate = |tokens: usize, seconds: f64| if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 };
    summary(
        usage.prompt_tokens,
        usage.cached_tokens,
        rate(usage.prompt_tokens - usage.cached_tokens, timings.prefill.as_secs_f64()),
        usage.completion_tokens,
        rate(usage.completion_tokens.saturating_sub(1), timings.decode.as_secs_f64()),
    )
}
