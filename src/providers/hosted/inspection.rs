//! What the engines of an upstream answer when they are asked for their models, for `hearth doctor`.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use hearth_domain::error::sentence;
use reqwest::StatusCode;
use serde::Deserialize;

use super::{engine::RemoteEngine, upstream::Upstream};

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// One engine's answer.
#[derive(Debug)]
pub struct Inspection {
    /// Where the upstream has several.
    pub engine: Option<String>,
    /// The models that it lists, and how long it took; or why it does not list any.
    pub found: Result<(Vec<String>, Duration), String>,
}

impl Upstream {
    /// Asks every engine for its models, all at once.
    pub async fn inspect(&self) -> Vec<Inspection> {
        join_all(self.engines().iter().map(|engine| async {
            let asked = Instant::now();
            let found = list(engine).await.map(|models| (models, asked.elapsed()));
            let found = found.map_err(|reason| self.redacted(&reason));
            Inspection { engine: engine.name().map(ToOwned::to_owned), found }
        }))
        .await
    }
}

#[derive(Deserialize)]
struct Models {
    data: Vec<Model>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
}

/// The names of the models that an engine lists.
async fn list(engine: &RemoteEngine) -> Result<Vec<String>, String> {
    let reason = |error: reqwest::Error| sentence(&anyhow::Error::new(error.without_url()));
    let answer = engine.client().get(engine.url("models")).timeout(PATIENCE).send().await.map_err(reason)?;
    match answer.status() {
        status if status.is_success() => {}
        status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
            return Err(format!("it answers {status}: look at the key in the upstream's api_key_env or api_key_file"));
        }
        status @ StatusCode::NOT_FOUND => {
            return Err(format!("it answers {status} to GET models: its address usually ends with /v1"));
        }
        status => return Err(format!("it answers {status}")),
    }
    let models: Models = answer.json().await.map_err(reason)?;
    Ok(models.data.into_iter().map(|model| model.id).collect())
}
