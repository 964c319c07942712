//! `GET /v1/models` and `GET /v1/models/{id}`.

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
};

use super::{error::ApiError, state::AppState};
use crate::{
    error::{Error, ErrorKind},
    wire::models::{Model, ModelList},
};

pub(super) async fn list_models(State(state): State<AppState>) -> Json<ModelList> {
    let data = state.models.list().into_iter().map(|(info, aliases)| Model::new(&info, aliases)).collect();
    Json(ModelList { object: "list", data })
}

/// An id may contain slashes, as hub repositories do, so it is the rest of the path.
pub(super) async fn retrieve_model(
    State(state): State<AppState>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Model>, ApiError> {
    let Path(id) =
        id.map_err(|rejection| Error::new(ErrorKind::ModelNotFound, rejection.body_text()).with_param("model"))?;
    let (info, aliases) = state.models.find(&id)?;
    Ok(Json(Model::new(&info, aliases)))
}
