//! Every tensor type that ggml has ever numbered, so that a file with types that Hearth cannot compute with still
//! opens, is checked and can be described.
//!
//! Numbers, names and block sizes are ggml's (`ggml.h`, `ggml-common.h`, and the `gguf` package's
//! `GGML_QUANT_SIZES`).

/// `(number, name, elements per block, bytes per block)`. The sizes of types that ggml has removed are not needed: 0
/// means unknown.
const TYPES: [(u32, &str, u64, u64); 43] = [
    (0, "F32", 1, 4),
    (1, "F16", 1, 2),
    (2, "Q4_0", 32, 18),
    (3, "Q4_1", 32, 20),
    (4, "Q4_2 (removed from ggml)", 0, 0),
    (5, "Q4_3 (removed from ggml)", 0, 0),
    (6, "Q5_0", 32, 22),
    (7, "Q5_1", 32, 24),
    (8, "Q8_0", 32, 34),
    (9, "Q8_1", 32, 36),
    (10, "Q2_K", 256, 84),
    (11, "Q3_K", 256, 110),
    (12, "Q4_K", 256, 144),
    (13, "Q5_K", 256, 176),
    (14, "Q6_K", 256, 210),
    (15, "Q8_K", 256, 292),
    (16, "IQ2_XXS", 256, 66),
    (17, "IQ2_XS", 256, 74),
    (18, "IQ3_XXS", 256, 98),
    (19, "IQ1_S", 256, 50),
    (20, "IQ4_NL", 32, 18),
    (21, "IQ3_S", 256, 110),
    (22, "IQ2_S", 256, 82),
    (23, "IQ4_XS", 256, 136),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
    (29, "IQ1_M", 256, 56),
    (30, "BF16", 1, 2),
    (31, "Q4_0_4_4 (removed from ggml)", 0, 0),
    (32, "Q4_0_4_8 (removed from ggml)", 0, 0),
    (33, "Q4_0_8_8 (removed from ggml)", 0, 0),
    (34, "TQ1_0", 256, 54),
    (35, "TQ2_0", 256, 66),
    (36, "IQ4_NL_4_4 (removed from ggml)", 0, 0),
    (37, "IQ4_NL_4_8 (removed from ggml)", 0, 0),
    (38, "IQ4_NL_8_8 (removed from ggml)", 0, 0),
    (39, "MXFP4", 32, 17),
    (40, "NVFP4", 64, 36),
    (41, "Q1_0", 128, 18),
    (42, "Q2_0", 64, 18),
];

/// ggml's name of a type, for messages.
pub(super) fn type_name(id: u32) -> String {
    TYPES
        .iter()
        .find(|(number, ..)| *number == id)
        .map_or_else(|| format!("number {id}, unknown to Hearth"), |(_, name, ..)| (*name).to_owned())
}

/// `(elements, bytes)` of one block, if known.
pub(super) fn block(id: u32) -> Option<(u64, u64)> {
    TYPES.iter().find(|(number, _, size, _)| *number == id && *size > 0).map(|(_, _, size, bytes)| (*size, *bytes))
}

/// The name of the recipe with this number in `general.file_type`, such as `Q4_K_M` (`llama_ftype` of `llama.h`);
/// `None` for numbers that were removed or were added later.
pub(super) fn recipe_name(id: u64) -> Option<&'static str> {
    const FIRST: [&str; 33] = [
        "F32", "F16", "Q4_0", "Q4_1", "", "", "", "Q8_0", "Q5_0", "Q5_1", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L",
        "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "IQ2_XXS", "IQ2_XS", "Q2_K_S", "IQ3_XS", "IQ3_XXS", "IQ1_S",
        "IQ4_NL", "IQ3_S", "IQ3_M", "IQ2_S", "IQ2_M", "IQ4_XS", "IQ1_M", "BF16",
    ];
    match id {
        36 => Some("TQ1_0"),
        37 => Some("TQ2_0"),
        38 => Some("MXFP4_MOE"),
        _ => FIRST.get(usize::try_from(id).ok()?).copied().filter(|name| !name.is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_kernels::quant::GgmlType;

    #[test]
    fn agrees_with_the_types_that_are_computed_with() {
        for dtype in GgmlType::ALL {
            assert_eq!(type_name(dtype as u32), dtype.to_string());
            assert_eq!(block(dtype as u32), Some((dtype.block_size() as u64, dtype.block_bytes() as u64)));
        }
    }

    #[test]
    fn numbers_ascend_without_gaps() {
        assert!(TYPES.iter().enumerate().all(|(i, (number, ..))| i == *number as usize));
        assert_eq!(block(4), None);
        assert_eq!(type_name(99), "number 99, unknown to Hearth");
    }

    #[test]
    fn recipes_have_the_numbers_of_llama_cpp() {
        let names = [0, 7, 15, 18, 30, 32, 36, 5, 33, 1024].map(recipe_name);
        let known = ["F32", "Q8_0", "Q4_K_M", "Q6_K", "IQ4_XS", "BF16", "TQ1_0"].map(Some);
        assert_eq!(names[..7], known);
        assert_eq!(names[7..], [None; 3]);
    }
}
