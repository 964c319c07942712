//! Passes over a row of logits, as long as the vocabulary: its maximum, and the weights of its softmax.
//!
//! A sampler draws one token from some hundred thousand, and its scalar exponentials would take as long as several layers of a small
//! model. The passes are vectorized, and add up in groups of [`GROUP`], so that a draw looks at the groups first and then within one.
//! Everything is added in an order that depends on the row alone.

use super::cpu::{
    elementary::exponential,
    lanes::{Kernel, LANES, Lanes, dispatch},
};

/// Elements that are added up together: a multiple of the lanes.
pub const GROUP: usize = 1024;

/// The maximum of a row, and where it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Maximum {
    pub value: f32,
    /// The first that has it.
    pub index: usize,
}

/// The maximum of a row that may have minus infinities. `None` if it is empty or has nothing else.
///
/// # Errors
/// If an element is NaN or plus infinity: the row is no distribution.
pub fn maximum(row: &[f32]) -> Result<Option<Maximum>, NotFinite> {
    let mut best = Maximum { value: f32::NEG_INFINITY, index: 0 };
    let mut is_finite = true;
    for (group, values) in row.chunks(GROUP).enumerate() {
        let (value, finite) = dispatch(Largest(values));
        is_finite &= finite;
        if value > best.value {
            best = Maximum { value, index: group * GROUP };
        }
    }
    if !is_finite {
        return Err(NotFinite);
    }
    if best.value == f32::NEG_INFINITY {
        return Ok(None);
    }
    let within = row[best.index..].iter().position(|value| *value == best.value).unwrap_or(0);
    Ok(Some(Maximum { index: best.index + within, ..best }))
}

/// A row has an element that is NaN or plus infinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotFinite;

/// Calls `each` with every vector of the slice; the last one is filled up.
#[inline(always)]
fn for_vectors<L: Lanes>(lanes: L, row: &[f32], filler: f32, mut each: impl FnMut(L::F)) {
    let vectors = row.chunks_exact(LANES);
    let rest = vectors.remainder();
    for vector in vectors {
        // SAFETY: the vector has sixteen floats.
        each(unsafe { lanes.load_f(vector.as_ptr()) });
    }
    if !rest.is_empty() {
        let mut padded = [filler; LANES];
        padded[..rest.len()].copy_from_slice(rest);
        // SAFETY: the array has sixteen floats.
        each(unsafe { lanes.load_f(padded.as_ptr()) });
    }
}

/// The largest element, and whether none is NaN or plus infinity.
struct Largest<'a>(&'a [f32]);

impl Kernel for Largest<'_> {
    type Output = (f32, bool);

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> (f32, bool) {
        let mut largest = lanes.splat_f(f32::NEG_INFINITY);
        let mut poison = lanes.splat_f(0.0);
        for_vectors(lanes, self.0, f32::NEG_INFINITY, |x| {
            largest = lanes.max(x, largest);
            // Zero times NaN or infinity is NaN. This argument order propagates NaN, and minus infinity becomes finite.
            poison = lanes.fma(lanes.max(lanes.splat_f(f32::MIN), x), lanes.splat_f(0.0), poison);
        });
        (lanes.largest(largest), lanes.total(poison) == 0.0)
    }
}

/// The weights of a softmax before they are divided by their sum, with the sums of their groups.
#[derive(Debug, Default)]
pub struct Weights {
    weights: Vec<f32>,
    groups: Vec<f64>,
}

impl Weights {
    /// Fills in `e^((x - maximum) / temperature)` for each element; below about 1e-38 a weight is 0.
    pub fn fill(&mut self, row: &[f32], maximum: f32, temperature: f32) {
        self.weights.resize(row.len(), 0.0);
        self.groups.clear();
        for (row, weights) in row.chunks(GROUP).zip(self.weights.chunks_mut(GROUP)) {
            self.groups.push(f64::from(dispatch(Weigh { row, maximum, temperature, weights })));
        }
    }

    pub fn total(&self) -> f64 {
        self.groups.iter().sum()
    }

    pub fn as_slice(&self) -> &[f32] {
        &self.weights
    }

    /// The element at which the running sum exceeds `target`, which is from 0 to [`Self::total`]; the last with a weight, if
    /// rounding leaves the target beyond all. `None` if no element has a weight.
    pub fn find(&self, target: f64) -> Option<usize> {
        let mut before = 0.0;
        let mut last = None;
        for (group, (sum, weights)) in self.groups.iter().zip(self.weights.chunks(GROUP)).enumerate() {
            if *sum <= 0.0 {
                continue;
            }
            last = Some(group);
            if before + sum > target {
                let mut mass = before;
                let found = weights.iter().position(|weight| {
                    mass += f64::from(*weight);
                    mass > target
                });
                if let Some(found) = found {
                    return Some(group * GROUP + found);
                }
            }
            before += sum;
        }
        let last = last?;
        let weights = &self.weights[last * GROUP..self.weights.len().min((last + 1) * GROUP)];
        weights.iter().rposition(|weight| *weight > 0.0).map(|within| last * GROUP + within)
    }
}

struct Weigh<'a> {
    row: &'a [f32],
    maximum: f32,
    temperature: f32,
    weights: &'a mut [f32],
}

impl Kernel for Weigh<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) -> f32 {
        let Self { row, maximum, temperature, weights } = self;
        let (maximum, temperature) = (lanes.splat_f(maximum), lanes.splat_f(temperature));
        let mut total = lanes.splat_f(0.0);
        let mut at = 0;
        for_vectors(lanes, row, f32::NEG_INFINITY, |x| {
            let weight = exponential(lanes, lanes.div(lanes.sub(x, maximum), temperature));
            total = lanes.add(total, weight);
            if let Some(to) = weights.get_mut(at..at + LANES) {
                // SAFETY: the slice has sixteen floats.
                unsafe { lanes.store_f(to.as_mut_ptr(), weight) };
            } else {
                let mut rest = [0.0; LANES];
                // SAFETY: the array has sixteen floats.
                unsafe { lanes.store_f(rest.as_mut_ptr(), weight) };
                let left = weights.len() - at;
                weights[at..].copy_from_slice(&rest[..left]);
            }
            at += LANES;
        });
        lanes.total(total)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_maximum_is_the_first_of_the_largest(row in prop::collection::vec(-20i32..20, 0..3000)) {
            let row: Vec<f32> = row.iter().map(|x| if *x < -15 { f32::NEG_INFINITY } else { *x as f32 }).collect();
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let expected = row.iter().position(|x| *x == largest && largest > f32::NEG_INFINITY);
            let found = maximum(&row).expect("nothing is NaN");
            prop_assert_eq!(found.map(|found| found.index), expected);
        }

        #[test]
        fn weights_and_their_sums_follow_the_formula(
            row in prop::collection::vec(-30f32..30.0, 1..3000), temperature in 0.1f32..3.0, at in 0.0f64..1.0,
        ) {
            let largest = maximum(&row).expect("finite").expect("there is one").value;
            let mut weights = Weights::default();
            weights.fill(&row, largest, temperature);
            let exact: Vec<f64> =
                row.iter().map(|x| (f64::from(x - largest) / f64::from(temperature)).exp()).collect();
            for (weight, exact) in weights.as_slice().iter().zip(&exact) {
                prop_assert!((f64::from(*weight) - exact).abs() <= 4e-5 * exact + 1e-37, "{weight} for {exact}");
            }
            let total: f64 = exact.iter().sum();
            prop_assert!((weights.total() - total).abs() <= 4e-5 * total);
            let found = weights.find(at * weights.total()).expect("there is one");
            let before: f64 = weights.as_slice()[..found].iter().map(|weight| f64::from(*weight)).sum();
            let with = before + f64::from(weights.as_slice()[found]);
            let target = at * weights.total();
            prop_assert!(before <= target + 1e-5 * total && with >= target - 1e-5 * total, "{before} {target} {with}");
        }
    }

    #[test]
    fn rows_that_are_no_distribution_are_told_apart() {
        for broken in [f32::NAN, f32::INFINITY] {
            for at in [0, 16, 1023, 2047] {
                let mut row = vec![-1.0; 2048];
                row[at] = broken;
                assert_eq!(maximum(&row), Err(NotFinite), "{broken} at {at}");
            }
        }
        assert_eq!(maximum(&[f32::NEG_INFINITY; 40]), Ok(None));
        assert_eq!(maximum(&[]), Ok(None));
        assert_eq!(maximum(&[f32::NEG_INFINITY, f32::MIN]), Ok(Some(Maximum { value: f32::MIN, index: 1 })));
        let mut weights = Weights::default();
        weights.fill(&[0.0, f32::NEG_INFINITY], 0.0, 1.0);
        assert_eq!(weights.find(weights.total()), Some(0), "past the end, the last that has a weight");
    }
}
