//! The file's `[[route]]` tables: a name, and who may serve it, in order.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};
use hearth_domain::RoutingPolicy;
use serde::Deserialize;

use super::UpstreamConfig;
use crate::providers::hosted::{Dialect, HostedKind, HostedModel};

/// One `[[route]]` table of the file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouteTable {
    /// The name that callers use.
    pub name: String,
    /// `local`, or `upstream/model`, with the model's name in the upstream's `models` or the upstream's own.
    pub targets: Vec<String>,
    /// Which side is first if neither the request nor its key says.
    pub policy: Option<String>,
    /// Documents are embedded by it as well.
    #[serde(default)]
    pub documents: bool,
}

/// A name and who may serve it.
#[derive(Clone, Debug)]
pub struct Route {
    pub name: String,
    pub kind: HostedKind,
    pub targets: Vec<Target>,
    pub policy: Option<RoutingPolicy>,
    /// Documents are embedded by it as well.
    pub documents: bool,
}

/// A side that may serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The local model of the route's kind.
    Local,
    Hosted {
        upstream: String,
        model: HostedModel,
    },
}

/// The routes in the file, checked against the upstreams.
///
/// # Errors
/// If a route is empty, duplicated, of two kinds, or has an unknown target; the message names the route.
pub(super) fn resolve(tables: Vec<RouteTable>, upstreams: &[UpstreamConfig]) -> anyhow::Result<Vec<Route>> {
    let mut routes: BTreeMap<String, Route> = BTreeMap::new();
    let mut names = Vec::new();
    for table in tables {
        let name = table.name.clone();
        let route = route(table, upstreams).with_context(|| format!("the route {name:?}"))?;
        names.push(name.clone());
        ensure!(routes.insert(name.clone(), route).is_none(), "Two routes are named {name:?}.");
    }
    let for_documents: Vec<&String> = names.iter().filter(|name| routes[*name].documents).collect();
    ensure!(for_documents.len() < 2, "the routes {for_documents:?} all set `documents = true`: only one may.");
    Ok(names.iter().filter_map(|name| routes.remove(name)).collect())
}

fn route(table: RouteTable, upstreams: &[UpstreamConfig]) -> anyhow::Result<Route> {
    ensure!(!table.name.is_empty(), "a name must not be empty.");
    ensure!(!table.targets.is_empty(), "targets is empty: name who serves it, such as \"local\".");
    let targets =
        table.targets.iter().map(|target| self::target(target, upstreams)).collect::<anyhow::Result<Vec<_>>>()?;
    for (index, target) in targets.iter().enumerate() {
        ensure!(!targets[..index].contains(target), "targets names {:?} twice.", table.targets[index]);
    }
    let mut kinds = targets.iter().filter_map(|target| match target {
        Target::Local => None,
        Target::Hosted { model, .. } => Some(model.kind),
    });
    let kind = kinds.next().unwrap_or(HostedKind::Chat);
    ensure!(kinds.all(|other| other == kind), "targets has models of several kinds: a name is of one kind.");
    let num_hosted = targets.iter().filter(|target| **target != Target::Local).count();
    ensure!(
        kind != HostedKind::Embedding || num_hosted == 1 || targets.contains(&Target::Local),
        "targets has several upstreams for embeddings and no \"local\": there is nothing to verify that they serve the \
         same model. Name one."
    );
    let policy = table.policy.map(|policy| policy.parse()).transpose();
    let policy = policy.map_err(|reason: String| anyhow::anyhow!("policy: {reason}."))?;
    ensure!(
        !table.documents || (kind == HostedKind::Embedding && targets.contains(&Target::Local)),
        "documents = true: documents are embedded by the local embedding model and by upstreams that serve the same, so \
         targets must be \"local\" and such upstreams."
    );
    let is_foreign = |target: &&Target| match target {
        Target::Local => false,
        Target::Hosted { upstream, .. } => {
            let mut found = upstreams.iter().filter(|known| known.settings.name == *upstream);
            found.any(|known| known.settings.dialect != Dialect::Hearth)
        }
    };
    ensure!(
        !table.documents || !targets.iter().any(|target| is_foreign(&target)),
        "documents = true: the upstreams must be of kind \"hearth\": only those truncate passages as this machine does."
    );
    ensure!(
        !table.documents || matches!(policy, Some(RoutingPolicy::HostedFirst | RoutingPolicy::HostedOnly)),
        "documents = true: set policy = \"hosted-first\": otherwise the local model embeds everything."
    );
    Ok(Route { name: table.name, kind, targets, policy, documents: table.documents })
}

fn target(text: &str, upstreams: &[UpstreamConfig]) -> anyhow::Result<Target> {
    if text == "local" {
        return Ok(Target::Local);
    }
    let Some((upstream, model)) = text.split_once('/') else {
        bail!("the target {text:?} is neither \"local\" nor \"upstream/model\".");
    };
    let Some(found) = upstreams.iter().find(|known| known.settings.name == upstream) else {
        let known: Vec<&str> = upstreams.iter().map(|known| known.settings.name.as_str()).collect();
        bail!("the target {text:?}: there is no upstream {upstream:?}; there are {known:?}.");
    };
    let by_upstream_name = || found.models.values().find(|known| known.upstream_model == model);
    match found.models.get(model).or_else(by_upstream_name) {
        Some(model) => Ok(Target::Hosted { upstream: upstream.to_owned(), model: model.clone() }),
        None => {
            let known: Vec<&String> = found.models.keys().collect();
            bail!("the target {text:?}: {model:?} is not among the upstream's models {known:?}; name it there, too.");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Settings};

    const UPSTREAMS: &str = r#"
        [[upstream]]
        name = "up"
        base_url = "http://127.0.0.1:1/v1"
        [upstream.models]
        "small" = "vendor/gpt-x-mini"
        "vectors" = { model = "embed-x", kind = "embedding", dimensions = 384 }

        [[upstream]]
        name = "hearths"
        kind = "hearth"
        base_url = "http://127.0.0.1:3/v1"
        [upstream.models]
        "vectors" = { model = "embed-x", kind = "embedding", dimensions = 384 }

        [[upstream]]
        name = "rack"
        base_url = "http://127.0.0.1:2/v1"
        models = ["qwen"]
        [upstream.headers]
    "#;

    fn routes(text: &str) -> anyhow::Result<Vec<Route>> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("hearth.toml");
        std::fs::write(&path, format!("{UPSTREAMS}\n{text}")).expect("a writable directory");
        Ok(Config::load(Settings { config: Some(path), ..Settings::default() })?.routes)
    }

    #[test]
    fn a_route_names_who_serves_in_order() {
        let routes = routes(
            "[[route]]\nname = \"auto\"\ntargets = [\"local\", \"rack/qwen\", \"up/vendor/gpt-x-mini\"]\n\
             policy = \"hosted-first\"\n[[route]]\nname = \"embed\"\ntargets = [\"up/vectors\"]\n[[route]]\n\
             name = \"shared\"\ntargets = [\"local\", \"hearths/vectors\"]\npolicy = \"hosted-first\"\n\
             documents = true",
        )
        .expect("whole");
        let hosted = |upstream: &str, model: &str| Target::Hosted {
            upstream: upstream.to_owned(),
            model: HostedModel::chat(model),
        };
        assert_eq!(routes[0].targets, [Target::Local, hosted("rack", "qwen"), hosted("up", "vendor/gpt-x-mini")]);
        assert_eq!((routes[0].kind, routes[0].policy), (HostedKind::Chat, Some(RoutingPolicy::HostedFirst)));
        assert_eq!((routes[1].kind, routes[1].policy), (HostedKind::Embedding, None));
        assert_eq!([routes[1].documents, routes[2].documents], [false, true]);
    }

    #[test]
    fn mistakes_are_named() {
        for (targets, says) in [
            ("[]", "targets is empty"),
            ("[\"loca\"]", "loca"),
            ("[\"cloud/small\"]", "no upstream \"cloud\""),
            ("[\"up/large\"]", "\"large\" is not among"),
            ("[\"local\", \"local\"]", "twice"),
            ("[\"up/small\", \"up/vectors\"]", "one kind"),
            ("[\"up/vectors\"]\ndocuments = true", "must be \"local\""),
            ("[\"local\", \"up/small\"]\ndocuments = true", "must be \"local\""),
            ("[\"local\", \"up/vectors\"]\ndocuments = true", "of kind \"hearth\""),
            ("[\"local\", \"hearths/vectors\"]\ndocuments = true", "hosted-first"),
            ("[\"local\"]\npolicy = \"cloud\"", "is no policy"),
            ("[\"local\"]\ntarget = 1", "target"),
        ] {
            let error = routes(&format!("[[route]]\nname = \"a\"\ntargets = {targets}")).expect_err(targets);
            let error = format!("{error:#}");
            assert!(error.contains(says), "{error}");
        }
        let twice = "[[route]]\nname = \"a\"\ntargets = [\"local\"]\n".repeat(2);
        assert!(format!("{:#}", routes(&twice).expect_err("twice")).contains("Two routes"));
    }
}
