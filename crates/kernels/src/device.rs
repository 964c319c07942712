//! Which device to compute on, and how many threads the CPU path uses.
//!
//! `auto` prefers an accelerator and falls back to the CPU with a log line; a device that is requested by name and
//! cannot be opened is an error.

use std::{fmt, str::FromStr};

use candle_core::{Device, DeviceLocation};

pub use super::cpu::features::{CpuFeatures, InstructionSet, cpu_features};
pub use super::pool::{Aside, set_threads, threads};

/// The values of `--device`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// An accelerator if this build and this machine have one, otherwise the CPU.
    #[default]
    Auto,
    Cpu,
    /// The CPU, where candle's own operations compute the chat model: slow, to compare our kernels with.
    Candle,
    Cuda,
    Metal,
}

/// Who computes a chat model.
#[derive(Clone, Debug)]
pub enum Backend {
    /// Our kernels.
    Cpu,
    /// Candle's operations, on any device.
    Candle(Device),
}

impl Backend {
    /// Our kernels on the CPU, candle elsewhere.
    pub fn of(device: &Device) -> Self {
        if device.is_cpu() { Self::Cpu } else { Self::Candle(device.clone()) }
    }

    /// Where it computes.
    pub const fn device(&self) -> &Device {
        match self {
            Self::Cpu => &Device::Cpu,
            Self::Candle(device) => device,
        }
    }

    /// `cpu`, `candle on cpu`, `cuda` or `metal`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Candle(device) if device.is_cpu() => "candle on cpu",
            _ => device_name(self.device()),
        }
    }
}

impl DeviceChoice {
    /// Who computes the chat model on the device that this choice opened.
    pub fn backend(self, device: &Device) -> Backend {
        if self == Self::Candle { Backend::Candle(device.clone()) } else { Backend::of(device) }
    }
}

impl FromStr for DeviceChoice {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        match text.to_ascii_lowercase().as_str() {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "candle" => Ok(Self::Candle),
            "cuda" => Ok(Self::Cuda),
            "metal" => Ok(Self::Metal),
            _ => Err(DeviceError::Unknown(text.to_owned())),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Candle => "candle",
            Self::Cuda => "cuda",
            Self::Metal => "metal",
        })
    }
}

/// Why no device could be opened.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("unknown device `{0}`: use auto, cpu, candle, cuda or metal")]
    Unknown(String),
    #[error("this build has no {0} support: build with `--features {0}`, or use --device cpu")]
    NotBuilt(DeviceChoice),
    #[error("{choice} cannot be used on this machine ({source}): check the driver, or use --device cpu")]
    Unusable { choice: DeviceChoice, source: candle_core::Error },
}

/// `cpu`, `cuda` or `metal`.
pub fn device_name(device: &Device) -> &'static str {
    match device.location() {
        DeviceLocation::Cpu => "cpu",
        DeviceLocation::Cuda { .. } => "cuda",
        DeviceLocation::Metal { .. } => "metal",
    }
}

/// Opens the device; [`DeviceChoice::Auto`] never fails on a machine without an accelerator.
pub fn open_device(choice: DeviceChoice) -> Result<Device, DeviceError> {
    match choice {
        DeviceChoice::Cpu | DeviceChoice::Candle => Ok(Device::Cpu),
        DeviceChoice::Cuda | DeviceChoice::Metal => open_accelerator(choice),
        DeviceChoice::Auto => {
            for accelerator in [DeviceChoice::Cuda, DeviceChoice::Metal] {
                match open_accelerator(accelerator) {
                    Ok(device) => return Ok(device),
                    Err(DeviceError::NotBuilt(_)) => {}
                    Err(error) => tracing::warn!(%error, "falling back to the CPU"),
                }
            }
            Ok(Device::Cpu)
        }
    }
}

fn open_accelerator(choice: DeviceChoice) -> Result<Device, DeviceError> {
    let opened = match choice {
        // A dedicated stream: the per-thread default stream would tie the model to one OS thread's context.
        DeviceChoice::Cuda if cfg!(feature = "cuda") => Device::new_cuda_with_stream(0),
        DeviceChoice::Metal if cfg!(feature = "metal") => Device::new_metal(0),
        _ => return Err(DeviceError::NotBuilt(choice)),
    };
    opened.map_err(|source| DeviceError::Unusable { choice, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        use DeviceChoice::{Auto, Candle, Cpu, Cuda, Metal};
        for choice in [Auto, Cpu, Candle, Cuda, Metal] {
            assert_eq!(choice.to_string().parse::<DeviceChoice>().expect("a name it printed itself"), choice);
        }
        assert!("tpu".parse::<DeviceChoice>().is_err());
    }

    #[cfg(not(any(feature = "cuda", feature = "metal")))]
    #[test]
    fn a_device_that_was_not_built_is_named() {
        assert!(matches!(open_device(DeviceChoice::Cuda), Err(DeviceError::NotBuilt(DeviceChoice::Cuda))));
        assert!(open_device(DeviceChoice::Auto).expect("the CPU is always there").is_cpu());
    }
}
