//! The model router: the names under which models are served, and who may serve each.
//!
//! A name is a route of the file, a name of the local model, or a model of an upstream; the first of these that has it
//! defines it. Names that an upstream may serve exist before the local models are loaded; the others once they are.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::Context;
use hearth_domain::{
    RoutingPolicy,
    documents::EmbeddingIdentity,
    error::{Error, ErrorKind},
};

use super::load::{chat_model_path, file_name};
use crate::{
    config::{Config, Route, Target},
    providers::{
        ChatModel, Embedder, Reranker,
        fallback::{
            Candidate, FallbackChat, FallbackEmbedder, FallbackReranker, LocalSlot, Obstacle, Policies, Reason,
        },
        hosted::{HostedChat, HostedEmbedder, HostedKind, HostedModel, HostedReranker, Upstream},
        local::LocalChat,
        local_embedder::LocalEmbedder,
        local_reranker::LocalReranker,
    },
    service::models::Models,
};

/// See the module's documentation.
pub(super) struct Router {
    models: Arc<Models>,
    upstreams: BTreeMap<String, Arc<Upstream>>,
    chat: Arc<LocalSlot<dyn ChatModel>>,
    embedder: Arc<LocalSlot<dyn Embedder>>,
    reranker: Arc<LocalSlot<dyn Reranker>>,
    /// Embedders that compare vectors with the local embedding model's, which they receive once it is loaded.
    learners: Vec<Arc<FallbackEmbedder>>,
    has_hosted: bool,
}

impl Router {
    /// Serves callers the models that upstreams may serve.
    ///
    /// # Errors
    /// If an upstream's configuration cannot be used, or the models directory cannot be read.
    pub(super) fn new(config: &Config, models: Arc<Models>) -> anyhow::Result<Self> {
        let mut upstreams = BTreeMap::new();
        // An upstream that must never be asked is not even opened.
        if config.policy != RoutingPolicy::LocalOnly {
            for upstream in &config.upstreams {
                let opened = Upstream::new(upstream.settings.clone())?;
                upstreams.insert(upstream.settings.name.clone(), opened);
            }
        }
        let has_hosted = !upstreams.is_empty();
        let mut router = Self {
            models,
            upstreams,
            chat: LocalSlot::loading(),
            embedder: LocalSlot::loading(),
            reranker: LocalSlot::loading(),
            learners: Vec::new(),
            has_hosted,
        };
        if has_hosted {
            router.add_local_name(config)?;
            for route in &config.routes {
                router.add_route(config, route);
            }
            router.add_hosted_names(config);
        }
        Ok(router)
    }

    /// Whether requests can be served without a local model.
    pub(super) fn has_hosted(&self) -> bool {
        self.has_hosted
    }

    /// Probes the upstreams' engines from now on. Must be called on the runtime.
    pub(super) fn watch_upstreams(&self) {
        for upstream in self.upstreams.values() {
            upstream.watch();
        }
    }

    /// The local chat model under its own names, with an upstream as its fallback if one is available.
    fn add_local_name(&self, config: &Config) -> anyhow::Result<()> {
        let Some(path) = chat_model_path(config)? else { return Ok(()) };
        let names = unclaimed(config, local_names(config, &file_name(&path)));
        let (Some(name), Some((upstream, model))) = (names.first(), usual_fallback(config, &names)) else {
            return Ok(());
        };
        let candidates = vec![Candidate::Local(self.chat.clone()), self.hosted_chat(name, upstream, model)?];
        let chat = FallbackChat::new(name, candidates, Policies { server: config.policy, route: None });
        self.models.add_hosted_chat(Arc::new(chat), names[1..].to_vec());
        Ok(())
    }

    /// A route that an upstream may serve; the others wait for the local model.
    fn add_route(&mut self, config: &Config, route: &Route) {
        let policies = Policies { server: config.policy, route: route.policy };
        let is_hosted = |target: &&Target| matches!(target, Target::Hosted { .. });
        if !route.targets.iter().any(|target| is_hosted(&target)) {
            return;
        }
        match route.kind {
            HostedKind::Chat => {
                let candidates = route.targets.iter().filter_map(|target| match target {
                    Target::Local => Some(Candidate::Local(self.chat.clone())),
                    Target::Hosted { upstream, model } => self.hosted_chat(&route.name, upstream, model).ok(),
                });
                let chat = FallbackChat::new(&route.name, candidates.collect(), policies);
                self.models.add_hosted_chat(Arc::new(chat), Vec::new());
            }
            HostedKind::Embedding => {
                let candidates = route.targets.iter().filter_map(|target| match target {
                    Target::Local => Some(Candidate::Local(self.embedder.clone())),
                    Target::Hosted { upstream, model } => self.hosted_embedder(&route.name, upstream, model).ok(),
                });
                let embedder = Arc::new(FallbackEmbedder::new(&route.name, candidates.collect(), policies));
                self.learners.push(embedder.clone());
                self.models.add_hosted_embedder(embedder, Vec::new());
            }
            HostedKind::Rerank => {
                let candidates = route.targets.iter().filter_map(|target| match target {
                    Target::Local => Some(Candidate::Local(self.reranker.clone())),
                    Target::Hosted { upstream, model } => self.hosted_reranker(&route.name, upstream, model).ok(),
                });
                let reranker = FallbackReranker::new(&route.name, candidates.collect(), policies);
                self.models.add_hosted_reranker(Arc::new(reranker), Vec::new());
            }
        }
    }

    /// The upstreams' models under the names in their tables, unless a name is taken.
    fn add_hosted_names(&self, config: &Config) {
        let policies = Policies { server: config.policy, route: None };
        for upstream in &config.upstreams {
            for (served, model) in &upstream.models {
                if self.models.find(served).is_ok() || config.routes.iter().any(|route| route.name == *served) {
                    continue;
                }
                let name = &upstream.settings.name;
                match model.kind {
                    HostedKind::Chat => {
                        let Ok(candidate) = self.hosted_chat(served, name, model) else { continue };
                        let chat = FallbackChat::new(served, vec![candidate], policies);
                        self.models.add_hosted_chat(Arc::new(chat), Vec::new());
                    }
                    HostedKind::Embedding => {
                        let Ok(candidate) = self.hosted_embedder(served, name, model) else { continue };
                        let embedder = FallbackEmbedder::new(served, vec![candidate], policies);
                        self.models.add_hosted_embedder(Arc::new(embedder), Vec::new());
                    }
                    HostedKind::Rerank => {
                        let Ok(candidate) = self.hosted_reranker(served, name, model) else { continue };
                        let reranker = FallbackReranker::new(served, vec![candidate], policies);
                        self.models.add_hosted_reranker(Arc::new(reranker), Vec::new());
                    }
                }
            }
        }
    }

    /// What embeds documents, if a route says that upstreams do: this local model in the background, and the upstreams
    /// that serve the same. Waits until the local model's vectors are known. With it, how many requests keep its
    /// engines busy.
    pub(super) fn document_embedder(
        &self,
        config: &Config,
        local: Arc<dyn Embedder>,
    ) -> anyhow::Result<Option<(Arc<dyn Embedder>, usize)>> {
        /// One that is computed and one that is on its way.
        const REQUESTS_PER_ENGINE: usize = 2;
        /// For each document, so that a pool of any size does not fill this machine's own queue when it fails.
        const REQUESTS_MAX: usize = 64;
        let Some(route) = config.routes.iter().find(|route| route.documents).filter(|_| self.has_hosted) else {
            return Ok(None);
        };
        let slot: Arc<LocalSlot<dyn Embedder>> = LocalSlot::loading();
        slot.take(local, || None);
        let mut engines = 0;
        let mut candidates = vec![Candidate::Local(slot)];
        for target in &route.targets {
            if let Target::Hosted { upstream, model } = target {
                engines += self.upstream(upstream)?.num_engines();
                candidates.push(self.hosted_embedder(&route.name, upstream, model)?);
            }
        }
        let policies = Policies { server: config.policy, route: route.policy };
        let embedder = FallbackEmbedder::new(&route.name, candidates, policies);
        let learnt = tokio::runtime::Handle::current().block_on(embedder.learn());
        learnt
            .map_err(|error| anyhow::anyhow!("the local embedding model could not be asked for comparison: {error}"))?;
        tracing::info!(
            route = route.name,
            engines,
            "upstreams embed documents as well: their texts leave this machine"
        );
        Ok(Some((Arc::new(embedder), (engines * REQUESTS_PER_ENGINE).min(REQUESTS_MAX))))
    }

    fn upstream(&self, name: &str) -> anyhow::Result<&Arc<Upstream>> {
        self.upstreams.get(name).with_context(|| format!("there is no upstream {name}"))
    }

    /// `served` is the name that callers use and receipts show.
    fn hosted_chat(
        &self,
        served: &str,
        upstream: &str,
        model: &HostedModel,
    ) -> anyhow::Result<Candidate<dyn ChatModel>> {
        let chat = HostedChat::new(self.upstream(upstream)?.clone(), model.upstream_model.clone(), model.info(served));
        Ok(Candidate::Hosted { name: format!("{upstream}/{}", model.upstream_model), model: Arc::new(chat) })
    }

    fn hosted_embedder(
        &self,
        served: &str,
        upstream: &str,
        model: &HostedModel,
    ) -> anyhow::Result<Candidate<dyn Embedder>> {
        let name = format!("{upstream}/{}", model.upstream_model);
        let identity = EmbeddingIdentity {
            name: model.identity.clone().unwrap_or_else(|| format!("hosted {name}")),
            dimensions: model.dimensions.unwrap_or_default(),
        };
        let upstream = self.upstream(upstream)?.clone();
        let embedder = HostedEmbedder::new(upstream, model.upstream_model.clone(), model.info(served), identity);
        Ok(Candidate::Hosted { name, model: Arc::new(embedder) })
    }

    fn hosted_reranker(
        &self,
        served: &str,
        upstream: &str,
        model: &HostedModel,
    ) -> anyhow::Result<Candidate<dyn Reranker>> {
        let name = format!("{upstream}/{}", model.upstream_model);
        let upstream = self.upstream(upstream)?.clone();
        let reranker = HostedReranker::new(upstream, model.upstream_model.clone(), model.info(served), model.scores);
        Ok(Candidate::Hosted { name, model: Arc::new(reranker) })
    }

    /// The local chat model has been loaded: it takes its place, and the names that only it serves become available.
    pub(super) fn take_chat(&self, config: &Config, chat: LocalChat) {
        let mut names = unclaimed(config, local_names(config, &chat.info().id));
        let chat: Arc<dyn ChatModel> = {
            let engine = chat.engine().clone();
            let limit = config.queue_wait_max;
            let model: Arc<dyn ChatModel> = Arc::new(chat);
            self.chat.take(model.clone(), move || obstacle(&engine, limit));
            model
        };
        names.retain(|name| self.models.find(name).is_err());
        for route in config.routes.iter().filter(|route| self.is_local(route, HostedKind::Chat)) {
            self.add_local_chat(config, &route.name, route.policy, Vec::new());
        }
        let Some(name) = names.first() else { return };
        if *name == chat.info().id && !self.has_hosted {
            self.models.add_chat(chat, names[1..].to_vec());
        } else {
            self.add_local_chat(config, name, None, names[1..].to_vec());
        }
    }

    fn add_local_chat(&self, config: &Config, name: &str, route: Option<RoutingPolicy>, aliases: Vec<String>) {
        let policies = Policies { server: config.policy, route };
        let chat = FallbackChat::new(name, vec![Candidate::Local(self.chat.clone())], policies);
        self.models.add_chat(Arc::new(chat), aliases);
    }

    /// Whether the local model alone serves the route.
    fn is_local(&self, route: &Route, kind: HostedKind) -> bool {
        route.kind == kind
            && route.targets.contains(&Target::Local)
            && (!self.has_hosted || route.targets.iter().all(|target| *target == Target::Local))
    }

    /// The local embedding model has been loaded. Waits until the embedders that compare with it know its vectors.
    pub(super) fn take_embedder(&self, config: &Config, embedder: LocalEmbedder) {
        let embedder: Arc<dyn Embedder> = Arc::new(embedder);
        // Its own queue refuses what it cannot take.
        self.embedder.take(embedder.clone(), || None);
        for learner in &self.learners {
            if let Err(error) = tokio::runtime::Handle::current().block_on(learner.learn()) {
                tracing::error!("the local embedding model could not be asked for comparison: {error:?}");
            }
        }
        let policies = Policies { server: config.policy, route: None };
        let routes = config.routes.iter().filter(|route| self.is_local(route, HostedKind::Embedding));
        for name in routes.map(|route| route.name.clone()) {
            let alone = vec![Candidate::Local(self.embedder.clone())];
            self.models.add_embedder(Arc::new(FallbackEmbedder::new(&name, alone, policies)), Vec::new());
        }
        if self.models.find(&embedder.info().id).is_err() {
            let name = embedder.info().id.clone();
            if self.has_hosted {
                let alone = vec![Candidate::Local(self.embedder.clone())];
                self.models.add_embedder(Arc::new(FallbackEmbedder::new(&name, alone, policies)), Vec::new());
            } else {
                self.models.add_embedder(embedder, Vec::new());
            }
        }
    }

    /// The local rerank model has been loaded.
    pub(super) fn take_reranker(&self, config: &Config, reranker: LocalReranker) {
        let reranker: Arc<dyn Reranker> = Arc::new(reranker);
        // Its own queue refuses what it cannot take.
        self.reranker.take(reranker.clone(), || None);
        let policies = Policies { server: config.policy, route: None };
        let alone = |name: &str| {
            let candidates = vec![Candidate::Local(self.reranker.clone())];
            self.models.add_reranker(Arc::new(FallbackReranker::new(name, candidates, policies)), Vec::new());
        };
        for route in config.routes.iter().filter(|route| self.is_local(route, HostedKind::Rerank)) {
            alone(&route.name);
        }
        let name = &reranker.info().id;
        if self.models.find(name).is_err() {
            if self.has_hosted {
                alone(name);
            } else {
                self.models.add_reranker(reranker, Vec::new());
            }
        }
    }

    /// Loading is complete: empty places stay empty.
    pub(super) fn all_loaded(&self) {
        self.chat.stays_empty();
        self.embedder.stays_empty();
        self.reranker.stays_empty();
    }

    /// Loading ended with this error.
    pub(super) fn failed(&self, reason: &str) {
        self.chat.failed(reason.to_owned());
        self.embedder.failed(reason.to_owned());
        self.reranker.failed(reason.to_owned());
    }
}

/// The names of the local chat model, its own first.
fn local_names(config: &Config, own: &str) -> Vec<String> {
    let of_file = config.model.as_deref().map(file_name);
    let mut names: Vec<String> = Vec::new();
    for name in config.aliases.iter().cloned().chain([own.to_owned()]).chain(of_file) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// The names that no route has.
fn unclaimed(config: &Config, names: Vec<String>) -> Vec<String> {
    let is_free = |name: &String| config.routes.iter().all(|route| route.name != *name);
    names.into_iter().filter(is_free).collect()
}

/// The upstream chat model that stands in for the local one if no route says so: the one of the same name, or the only
/// one.
fn usual_fallback<'a>(config: &'a Config, names: &[String]) -> Option<(&'a str, &'a HostedModel)> {
    let mut chats = config.upstreams.iter().flat_map(|upstream| {
        let models = upstream.models.iter().filter(|(_, model)| model.kind == HostedKind::Chat);
        models.map(|(served, model)| (upstream.settings.name.as_str(), served, model))
    });
    let of_name = chats.clone().find(|(_, served, _)| names.contains(served));
    let ((Some((upstream, _, model)), _, _) | (None, Some((upstream, _, model)), None)) =
        (of_name, chats.next(), chats.next())
    else {
        return None;
    };
    Some((upstream, model))
}

/// Why the local chat model should not be asked now.
fn obstacle(engine: &crate::engine::Engine, queue_wait_max: std::time::Duration) -> Option<Obstacle> {
    if !engine.heartbeat().alive {
        let error = Error::model_failed("the engine has stopped; the log has the cause. Restart the server.");
        return Some(Obstacle { reason: Reason::NotReady, error, passes_by_waiting: false });
    }
    let stats = engine.stats();
    // The engine's estimate is for half of the queue.
    let wait = if stats.waiting_requests > 0 { stats.estimated_wait * 2 } else { std::time::Duration::ZERO };
    (wait > queue_wait_max).then(|| Obstacle {
        reason: Reason::QueueWait,
        error: Error::new(
            ErrorKind::Overloaded,
            format!("A request would wait about {} seconds for its turn on this machine.", wait.as_secs()),
        )
        .with_retry_after(stats.estimated_wait),
        passes_by_waiting: true,
    })
}
