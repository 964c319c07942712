//! How keys and values are stored in memory.

use crate::cpu::{
    lanes::{Kernel, LANES, Lanes, dispatch},
    reference::half_to_float,
};

/// A stored key or value.
pub trait Element: Copy + Sync {
    /// Loads sixteen elements as floats.
    ///
    /// # Safety
    /// Sixteen elements can be read.
    unsafe fn load<L: Lanes>(lanes: L, from: *const Self) -> L::F;

    /// A multiple of sixteen elements as floats: where they are, or widened into `room`.
    ///
    /// # Safety
    /// `count` elements can be read, and as many floats be written to `room`.
    unsafe fn as_floats<L: Lanes>(lanes: L, from: *const Self, count: usize, room: *mut f32) -> *const f32;

    /// Its value.
    fn to_f32(self) -> f32;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(lanes: L, from: *const Self) -> L::F {
        // SAFETY: as the caller says.
        unsafe { lanes.load_f(from) }
    }

    #[inline(always)]
    unsafe fn as_floats<L: Lanes>(_: L, from: *const Self, _: usize, _: *mut f32) -> *const f32 {
        from
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

/// Half floats as raw bits.
impl Element for u16 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(lanes: L, from: *const Self) -> L::F {
        // SAFETY: as the caller says.
        unsafe { lanes.load_half(from) }
    }

    #[inline(always)]
    unsafe fn as_floats<L: Lanes>(lanes: L, from: *const Self, count: usize, room: *mut f32) -> *const f32 {
        for at in (0..count).step_by(LANES) {
            // SAFETY: as the caller says.
            unsafe { lanes.store_f(room.add(at), lanes.load_half(from.add(at))) };
        }
        room
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        half_to_float(self)
    }
}

/// Converts to half floats sixteen at a time, the remainder one by one.
pub fn to_half(from: &[f32], to: &mut [u16]) {
    dispatch(ToHalf { from, to });
}

struct ToHalf<'a> {
    from: &'a [f32],
    to: &'a mut [u16],
}

impl Kernel for ToHalf<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Lanes>(self, lanes: L) {
        let whole = self.from.len().min(self.to.len()) / LANES * LANES;
        for at in (0..whole).step_by(LANES) {
            // SAFETY: both slices have sixteen elements from `at`.
            unsafe { lanes.store_half(self.to.as_mut_ptr().add(at), lanes.load_f(self.from.as_ptr().add(at))) };
        }
        for (to, from) in self.to[whole..].iter_mut().zip(&self.from[whole..]) {
            *to = half::f16::from_f32(*from).to_bits();
        }
    }
}
