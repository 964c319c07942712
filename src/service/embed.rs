//! One embeddings request: checked against the model and run.

use std::sync::Arc;

use hearth_domain::{
    EmbedInput, EmbedRequest, EmbedResponse,
    error::{Error, Result},
};

use super::deadline;
use crate::providers::Embedder;

pub async fn embed(model: &Arc<dyn Embedder>, request: EmbedRequest) -> Result<EmbedResponse> {
    let info = model.info();
    if let (Some(asked), Some(length)) = (request.dimensions, info.embedding_length)
        && asked > length
    {
        return Err(Error::invalid(
            "dimensions",
            format!("`dimensions` must be at most {length}, the length of this model's embeddings, but is {asked}."),
        )
        .with_code("invalid_value"));
    }
    for (index, input) in request.inputs.iter().enumerate() {
        let EmbedInput::Tokens(ids) = input else { continue };
        // A vocabulary size of zero means that only the upstream knows it.
        let outside = |id: &&u32| info.vocab_size > 0 && usize::try_from(**id).map_or(true, |id| id >= info.vocab_size);
        if let Some(id) = ids.iter().find(outside) {
            let vocab_size = info.vocab_size;
            return Err(Error::invalid(
                if request.inputs.len() == 1 { "input".to_owned() } else { format!("input[{index}]") },
                format!("Token id {id} is outside the embedding model's vocabulary of {vocab_size} tokens."),
            )
            .with_code("invalid_value"));
        }
    }
    deadline::within(request.deadline, model.embed(request)).await
}
