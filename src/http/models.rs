//! `GET /v1/models` and `GET /v1/models/{id}`.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};
use hearth_domain::error::{Error, ErrorKind};

use super::{context::RequestCaller, error::ApiError, state::AppState};
use crate::wire::models::{Model, ModelList};

pub(super) async fn list_models(State(state): State<AppState>, caller: RequestCaller) -> Json<ModelList> {
    let listed = state.models.list().into_iter().filter(|(info, _)| state.models.allows(caller.principal(), &info.id));
    let data = listed.map(|(info, aliases)| Model::new(&info, aliases)).collect();
    Json(ModelList { object: "list", data })
}

/// An id may contain slashes, as hub repositories do, so it is the rest of the path.
pub(super) async fn retrieve_model(
    State(state): State<AppState>,
    caller: RequestCaller,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Model>, ApiError> {
    let Path(id) =
        id.map_err(|rejection| Error::new(ErrorKind::ModelNotFound, rejection.body_text()).with_param("model"))?;
    let (info, aliases) = state.models.find(&id)?;
    state.models.refuse_unless_allowed(caller.principal(), &info.id)?;
    Ok(Json(Model::new(&info, aliases)))
}
