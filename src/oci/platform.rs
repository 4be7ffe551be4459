//! Which of an index's images fits this machine.

use std::fmt;
use std::str::FromStr;

/// An operating system and processor, in Go's words: `linux/arm64`, `linux/arm/v7`.
///
/// Values are normalised: `x86_64` is `amd64`, `aarch64` is `arm64`, `arm`
/// without a variant is `v7`, `arm64` and `amd64` have none for `v8` and `v1`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// A text that is no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a platform: expected os/architecture[/variant], as linux/arm64 or linux/arm/v7"
)]
pub struct PlatformError(String);

impl Platform {
    /// Puts a platform together and normalises it.
    pub fn new(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let variant = variant.filter(|v| !v.is_empty()).map(str::to_lowercase);
        let (architecture, variant) = normalise(&architecture.to_lowercase(), variant);
        Self { os: os.to_lowercase(), architecture, variant }
    }

    /// This machine's platform. The operating system is always `linux`.
    pub fn host() -> Self {
        let machine = nix::sys::utsname::uname()
            .ok()
            .and_then(|name| name.machine().to_str().map(str::to_owned));
        let variant = match machine.as_deref() {
            Some("armv6l") => Some("v6"),
            Some("armv5l" | "armv5tel" | "armv5tejl") => Some("v5"),
            _ => None,
        };
        match std::env::consts::ARCH {
            "arm" => Self::new("linux", "arm", variant),
            // Go tells the byte orders apart by name, Rust doesn't.
            "powerpc64" if cfg!(target_endian = "little") => Self::new("linux", "ppc64le", None),
            "powerpc64" => Self::new("linux", "ppc64", None),
            "loongarch64" => Self::new("linux", "loong64", None),
            architecture => Self::new("linux", architecture, None),
        }
    }

    /// The operating system, as `linux`.
    pub fn os(&self) -> &str {
        &self.os
    }

    /// The architecture in Go's words.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// The processor variant, as `v7` for `arm`.
    pub fn variant(&self) -> Option<&str> {
        self.variant.as_deref()
    }

    /// How well an image for `offered` suits this platform: 0 is best, `None`
    /// is not at all. The order is containerd's: an arm64 host takes arm/v8 to
    /// arm/v5 after arm64, an amd64 one 386 after amd64.
    pub fn rank(&self, offered: &Self) -> Option<usize> {
        self.accepted().iter().position(|platform| platform == offered)
    }

    /// All platforms that this one can run, best first.
    fn accepted(&self) -> Vec<Self> {
        let with = |architecture: &str, variant: Option<String>| Self {
            os: self.os.clone(),
            architecture: architecture.to_owned(),
            variant,
        };
        let level = |variant: &Option<String>, default: u32| {
            let digits = variant.as_deref().and_then(|v| v.strip_prefix('v'));
            digits.and_then(|d| d.parse::<u32>().ok()).unwrap_or(default).min(16)
        };
        let arm = |from: u32| (5..=from).rev().map(|v| with("arm", Some(format!("v{v}"))));
        let mut all = vec![self.clone()];
        match self.architecture.as_str() {
            "amd64" => {
                let below = (2..level(&self.variant, 1)).rev();
                all.extend(below.map(|v| with("amd64", Some(format!("v{v}")))));
                if self.variant.is_some() {
                    all.push(with("amd64", None));
                }
                all.push(with("386", None));
            }
            "arm64" => {
                if self.variant.is_some() {
                    all.push(with("arm64", None));
                }
                all.extend(arm(8));
            }
            "arm" => all.extend(arm(level(&self.variant, 7).saturating_sub(1))),
            _ => {}
        }
        all
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let word = |part: &&str| -> bool {
            let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
            (1..=32).contains(&part.len()) && part.bytes().all(inner)
        };
        let parts: Vec<&str> = text.split('/').take(4).collect();
        match parts.as_slice() {
            [os, arch] if parts.iter().all(&word) => Ok(Self::new(os, arch, None)),
            [os, arch, variant] if parts.iter().all(word) => Ok(Self::new(os, arch, Some(variant))),
            _ => Err(PlatformError(text.chars().take(100).collect())),
        }
    }
}

fn normalise(architecture: &str, variant: Option<String>) -> (String, Option<String>) {
    // "7" and "v7" are the same.
    let variant = variant.map(|v| match v.parse::<u8>() {
        Ok(_) => format!("v{v}"),
        Err(_) => v,
    });
    let (name, variant) = match (architecture, variant) {
        ("amd64" | "x86_64" | "x86-64", variant) => ("amd64", variant.filter(|v| v != "v1")),
        ("arm64" | "aarch64", variant) => ("arm64", variant.filter(|v| v != "v8")),
        ("386" | "i386" | "x86" | "i686", _) => ("386", None),
        ("armhf", _) => ("arm", Some("v7".to_owned())),
        ("armel", _) => ("arm", Some("v6".to_owned())),
        ("arm", None) => ("arm", Some("v7".to_owned())),
        (other, variant) => (other, variant),
    };
    (name.to_owned(), variant)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().expect("a platform")
    }

    #[test]
    fn names_of_one_machine_are_one() {
        for (a, b) in [
            ("linux/x86_64", "linux/amd64"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm64/8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armhf", "linux/arm/v7"),
            ("Linux/ARM/7", "linux/arm/v7"),
            ("linux/i386", "linux/386"),
        ] {
            assert_eq!(platform(a), platform(b));
        }
        for bad in ["", "linux", "linux/", "a/b/c/d", "a/b\n", "linux/am d64"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_nearest_variant_is_preferred() {
        fn order<'a>(host: &str, offers: &[&'a str]) -> Vec<&'a str> {
            let mut ranked: Vec<_> = offers
                .iter()
                .filter_map(|o| Some((platform(host).rank(&platform(o))?, *o)))
                .collect();
            ranked.sort_unstable();
            ranked.into_iter().map(|(_, o)| o).collect()
        }
        let offers = [
            "linux/arm/v5",
            "linux/arm/v6",
            "linux/arm/v7",
            "linux/arm64",
            "linux/amd64",
            "linux/amd64/v3",
            "linux/386",
            "windows/amd64",
            "linux/s390x",
        ];
        assert_eq!(order("linux/amd64", &offers), ["linux/amd64", "linux/386"]);
        assert_eq!(
            order("linux/amd64/v4", &offers),
            ["linux/amd64/v3", "linux/amd64", "linux/386"]
        );
        assert_eq!(
            order("linux/arm64", &offers),
            ["linux/arm64", "linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]
        );
        assert_eq!(order("linux/arm/v6", &offers), ["linux/arm/v6", "linux/arm/v5"]);
        assert_eq!(order("linux/s390x", &offers), ["linux/s390x"]);
        assert_eq!(order("windows/amd64", &offers), ["windows/amd64"]);
    }

    #[test]
    fn the_host_is_linux_of_this_processor() {
        let host = Platform::host();
        assert_eq!(host.os(), "linux");
        if cfg!(target_arch = "x86_64") {
            assert_eq!(host.to_string(), "linux/amd64");
        }
    }
}
