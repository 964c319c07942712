//! The served models and their names.

use std::sync::Arc;

use hearth_domain::{
    ModelInfo, ModelKind,
    error::{Error, ErrorKind, Result},
};
use parking_lot::RwLock;

use crate::{
    providers::{
        ChatModel, Embedder, Reranker,
        cache::{CacheSettings, Caches},
        metered::Metered,
    },
    service::semantic::Semantic,
};

/// Resolves names to models. Models are added when they have been loaded, which may be after the server has started to
/// listen.
#[derive(Default)]
pub struct Models {
    served: RwLock<Vec<Served>>,
    /// Any name means the first model of the kind that the route needs.
    accept_any_model: bool,
    caches: Caches,
    semantic: Option<Semantic>,
}

#[derive(Clone)]
struct Served {
    model: Model,
    aliases: Vec<String>,
    /// An upstream may serve it, so it needs no local model.
    has_hosted: bool,
}

#[derive(Clone)]
enum Model {
    Chat(Arc<dyn ChatModel>),
    Embedding(Arc<dyn Embedder>),
    Rerank(Arc<dyn Reranker>),
}

impl Served {
    fn info(&self) -> &ModelInfo {
        match &self.model {
            Model::Chat(model) => model.info(),
            Model::Embedding(model) => model.info(),
            Model::Rerank(model) => model.info(),
        }
    }

    fn is_named(&self, name: &str) -> bool {
        self.info().id == name || self.aliases.iter().any(|alias| alias == name)
    }
}

impl std::fmt::Debug for Models {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<String> = self.served.read().iter().map(|served| served.info().id.clone()).collect();
        f.debug_struct("Models").field("served", &names).field("accept_any_model", &self.accept_any_model).finish()
    }
}

impl Models {
    pub fn new(accept_any_model: bool) -> Self {
        Self { accept_any_model, ..Self::default() }
    }

    /// Models that are added from here on are wrapped in these caches.
    #[must_use]
    pub fn with_caches(self, settings: &CacheSettings) -> Self {
        Self { caches: Caches::new(settings), semantic: Semantic::new(settings), ..self }
    }

    pub fn caches(&self) -> &Caches {
        &self.caches
    }

    /// The semantic cache, if it is enabled, with the embedding model for its questions.
    pub fn semantic(&self) -> Option<(&Semantic, Arc<dyn Embedder>)> {
        self.semantic.as_ref().zip(self.first_embedder())
    }

    pub fn add_chat(&self, model: Arc<dyn ChatModel>, aliases: Vec<String>) {
        self.add(Model::Chat(model), aliases, false);
    }

    /// A chat model that an upstream may serve: it is served while the local models load.
    pub fn add_hosted_chat(&self, model: Arc<dyn ChatModel>, aliases: Vec<String>) {
        self.add(Model::Chat(model), aliases, true);
    }

    pub fn add_embedder(&self, model: Arc<dyn Embedder>, aliases: Vec<String>) {
        self.add(Model::Embedding(model), aliases, false);
    }

    /// An embedding model that an upstream may serve.
    pub fn add_hosted_embedder(&self, model: Arc<dyn Embedder>, aliases: Vec<String>) {
        self.add(Model::Embedding(model), aliases, true);
    }

    pub fn add_reranker(&self, model: Arc<dyn Reranker>, aliases: Vec<String>) {
        self.add(Model::Rerank(model), aliases, false);
    }

    /// A rerank model that an upstream may serve.
    pub fn add_hosted_reranker(&self, model: Arc<dyn Reranker>, aliases: Vec<String>) {
        self.add(Model::Rerank(model), aliases, true);
    }

    /// An embedding model as requests use it: cached and metered.
    pub fn for_requests(&self, model: Arc<dyn Embedder>) -> Arc<dyn Embedder> {
        Metered::new(self.caches.embedder(model))
    }

    fn add(&self, model: Model, aliases: Vec<String>, has_hosted: bool) {
        let model = match model {
            Model::Chat(model) => Model::Chat(Metered::new(self.caches.chat(model))),
            Model::Embedding(model) => Model::Embedding(self.for_requests(model)),
            Model::Rerank(model) => Model::Rerank(Metered::new(model)),
        };
        self.served.write().push(Served { model, aliases, has_hosted });
    }

    /// Whether an upstream may serve what the name means to a route of this kind.
    pub fn has_hosted(&self, kind: ModelKind, name: Option<&str>) -> bool {
        let served = self.served.read();
        let mut of_kind = served.iter().filter(|entry| entry.info().kind == kind);
        let named = name.and_then(|name| of_kind.clone().find(|entry| entry.is_named(name)));
        let meant = named.or_else(|| if name.is_none() || self.accept_any_model { of_kind.next() } else { None });
        meant.is_some_and(|entry| entry.has_hosted)
    }

    /// The chat model that `name` means. `None` is a request that names no model.
    pub fn chat(&self, name: Option<&str>) -> Result<Arc<dyn ChatModel>> {
        self.resolve(name, ModelKind::Chat, |model| match model {
            Model::Chat(model) => Some(Arc::clone(model)),
            Model::Embedding(_) | Model::Rerank(_) => None,
        })
    }

    /// The embedding model that `name` means.
    pub fn embedder(&self, name: Option<&str>) -> Result<Arc<dyn Embedder>> {
        self.resolve(name, ModelKind::Embedding, |model| match model {
            Model::Embedding(model) => Some(Arc::clone(model)),
            Model::Chat(_) | Model::Rerank(_) => None,
        })
    }

    /// The rerank model that `name` means; the first if none is named, because not every client names one.
    pub fn reranker(&self, name: Option<&str>) -> Result<Arc<dyn Reranker>> {
        let pick = |model: &Model| match model {
            Model::Rerank(model) => Some(Arc::clone(model)),
            Model::Chat(_) | Model::Embedding(_) => None,
        };
        match name {
            Some(name) => self.resolve(Some(name), ModelKind::Rerank, pick),
            None => {
                let served = self.served.read();
                served.iter().find_map(|entry| pick(&entry.model)).ok_or_else(|| unknown("", &served))
            }
        }
    }

    fn resolve<T>(&self, name: Option<&str>, kind: ModelKind, pick: impl Fn(&Model) -> Option<T>) -> Result<T> {
        let served = self.served.read();
        let first = || served.iter().find_map(|entry| pick(&entry.model));
        match name {
            Some(name) => {
                let named = served.iter().filter(|entry| entry.is_named(name));
                if let Some(model) = named.clone().find_map(|entry| pick(&entry.model)) {
                    return Ok(model);
                }
                if self.accept_any_model
                    && let Some(model) = first()
                {
                    return Ok(model);
                }
                let is_of_other_kind = named.count() > 0;
                Err(if is_of_other_kind { wrong_kind(name, kind) } else { unknown(name, &served) })
            }
            None if self.accept_any_model => first().ok_or_else(|| unknown("", &served)),
            None => Err(Error::invalid("model", "`model` is required. GET /v1/models lists the served models.")
                .with_code("missing_required_parameter")),
        }
    }

    /// The chat model for routes where naming one is optional, such as `/tokenize`.
    pub fn chat_or_first(&self, name: Option<&str>) -> Result<Arc<dyn ChatModel>> {
        match name {
            Some(name) => self.chat(Some(name)),
            None => self.first_chat().ok_or_else(|| unknown("", &self.served.read())),
        }
    }

    pub fn first_chat(&self) -> Option<Arc<dyn ChatModel>> {
        self.served.read().iter().find_map(|entry| match &entry.model {
            Model::Chat(model) => Some(Arc::clone(model)),
            Model::Embedding(_) | Model::Rerank(_) => None,
        })
    }

    /// The local embedding model, or else the first one.
    pub fn first_embedder(&self) -> Option<Arc<dyn Embedder>> {
        let served = self.served.read();
        let embedders = served.iter().filter_map(|entry| match &entry.model {
            Model::Embedding(model) => Some((entry.has_hosted, model)),
            Model::Chat(_) | Model::Rerank(_) => None,
        });
        embedders.min_by_key(|(has_hosted, _)| *has_hosted).map(|(_, model)| Arc::clone(model))
    }

    /// Every served model with its aliases.
    pub fn list(&self) -> Vec<(ModelInfo, Vec<String>)> {
        self.served.read().iter().map(|served| (served.info().clone(), served.aliases.clone())).collect()
    }

    /// The information on the model that `name` means. Here a name is never "any": the caller asks whether it exists.
    pub fn find(&self, name: &str) -> Result<(ModelInfo, Vec<String>)> {
        let served = self.served.read();
        served
            .iter()
            .find(|entry| entry.is_named(name))
            .map(|entry| (entry.info().clone(), entry.aliases.clone()))
            .ok_or_else(|| unknown(name, &served))
    }
}

fn unknown(name: &str, served: &[Served]) -> Error {
    let known = served.iter().map(|entry| format!("`{}`", entry.info().id)).collect::<Vec<_>>().join(", ");
    let known = if known.is_empty() { "No model is served.".to_owned() } else { format!("Served: {known}.") };
    let shown: String = name.chars().take(120).collect();
    let message = if shown.is_empty() {
        format!("No model for this route. {known}")
    } else {
        format!("The model `{shown}` does not exist on this server. {known}")
    };
    Error::new(ErrorKind::ModelNotFound, message).with_param("model")
}

fn wrong_kind(name: &str, needed: ModelKind) -> Error {
    let message = match needed {
        ModelKind::Chat => format!("`{name}` is no chat model; GET /v1/models says what it can be asked for."),
        ModelKind::Embedding => format!("`{name}` is no embedding model; /v1/embeddings needs one."),
        ModelKind::Rerank => format!("`{name}` is no rerank model; /v1/rerank needs one."),
    };
    Error::invalid("model", message).with_code("model_not_supported")
}
