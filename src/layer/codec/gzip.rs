//! gzip (RFC 1952) of any number of members, with block boundaries shown.
//!
//! A member's length is checked, its CRC is not: blobs are verified by their
//! SHA-256 and content by its BLAKE3, and a third sum would cost a tenth of the
//! time that inflating takes.

use super::inflate::Inflate;
use super::{Boundary, CodecError, Progress};

/// A decoder of a sequence of gzip members.
pub(crate) struct Gzip {
    state: State,
    /// Output of this member so far, modulo 2^32; `None` when decoding began
    /// inside it.
    length: Option<u32>,
    /// A member has been seen: a blob without any is not gzip.
    started: bool,
    /// The last byte taken into a body: a block can begin inside it.
    last: u8,
}

enum State {
    /// Before a member, or behind the last one.
    Between,
    Header(Header),
    Body(Box<Inflate>),
    Trailer {
        have: usize,
        bytes: [u8; 8],
    },
    /// Zeros behind the last member, as some writers pad.
    Padding,
}

/// Parts of a member's header in order.
#[derive(Clone, Copy, Debug)]
enum Header {
    Fixed {
        have: usize,
        flags: u8,
    },
    ExtraLength {
        have: usize,
        length: u16,
        flags: u8,
    },
    Extra {
        left: u16,
        flags: u8,
    },
    /// File name and comment end with a NUL.
    Name {
        flags: u8,
    },
    Comment {
        flags: u8,
    },
    Checksum {
        left: u8,
    },
}

const FHCRC: u8 = 2;
const FEXTRA: u8 = 4;
const FNAME: u8 = 8;
const FCOMMENT: u8 = 16;

const BAD_HEADER: CodecError = CodecError::Malformed("gzip header");
const BAD_DATA: CodecError = CodecError::Malformed("deflate data");

impl Gzip {
    /// At the start of a member.
    pub(crate) fn new() -> Self {
        Self { state: State::Between, length: None, started: false, last: 0 }
    }

    /// Inside a member, as a [`Boundary::Block`] showed it.
    pub(crate) fn resume(
        bits: u8,
        value: u8,
        window: &[u8],
        length: Option<u32>,
    ) -> Result<Self, CodecError> {
        let inflate = Inflate::resume(bits, value, window).map_err(|_| BAD_DATA)?;
        Ok(Self { state: State::Body(Box::new(inflate)), length, started: true, last: 0 })
    }

    /// At a block boundary: the window, and the member's output so far.
    pub(crate) fn inside(&self) -> Option<(Vec<u8>, Option<u32>)> {
        match &self.state {
            State::Body(inflate) => Some((inflate.window(), self.length)),
            _ => None,
        }
    }

    /// Decodes into the spare capacity of `out`. Stops when `input` or `out` is
    /// used up, before each member but the first, and with `at_blocks` between
    /// blocks.
    pub(crate) fn step(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        at_blocks: bool,
    ) -> Result<Progress, CodecError> {
        let mut consumed = 0;
        loop {
            if let State::Body(inflate) = &mut self.state {
                if out.len() == out.capacity() {
                    break;
                }
                let start = out.len();
                let step =
                    inflate.step(&input[consumed..], out, at_blocks).map_err(|_| BAD_DATA)?;
                consumed += step.consumed;
                if step.consumed > 0 {
                    self.last = input[consumed - 1];
                }
                if let Some(length) = &mut self.length {
                    *length = length.wrapping_add((out.len() - start) as u32);
                }
                if step.end {
                    self.state = State::Trailer { have: 0, bytes: [0; 8] };
                } else if let Some(bits) = step.boundary.filter(|_| at_blocks) {
                    let value = (u16::from(self.last) >> (8 - bits)) as u8;
                    let boundary = Some(Boundary::Block { bits, value });
                    return Ok(Progress { consumed, boundary });
                } else if step.consumed == 0 && out.len() == start {
                    break;
                }
                continue;
            }
            let Some(byte) = input.get(consumed) else { break };
            match &mut self.state {
                State::Body(_) => {}
                State::Between => {
                    if self.started && *byte == 0 {
                        self.state = State::Padding;
                        continue;
                    }
                    self.state = State::Header(Header::Fixed { have: 0, flags: 0 });
                    self.length = Some(0);
                    if std::mem::replace(&mut self.started, true) {
                        let boundary = Some(Boundary::Start);
                        return Ok(Progress { consumed, boundary });
                    }
                }
                State::Header(header) => {
                    consumed += 1;
                    match header.next(*byte)? {
                        Some(next) => *header = next,
                        None => {
                            let inflate = Inflate::new().map_err(|_| CodecError::Memory)?;
                            self.state = State::Body(Box::new(inflate));
                        }
                    }
                }
                State::Trailer { have, bytes } => {
                    bytes[*have] = *byte;
                    *have += 1;
                    consumed += 1;
                    if *have == 8 {
                        let [.., a, b, c, d] = *bytes;
                        let stated = u32::from_le_bytes([a, b, c, d]);
                        if self.length.is_some_and(|length| length != stated) {
                            return Err(CodecError::Malformed("length of a gzip member"));
                        }
                        self.state = State::Between;
                    }
                }
                State::Padding => {
                    let zeros = input[consumed..].iter().take_while(|b| **b == 0).count();
                    consumed += zeros;
                    if consumed < input.len() {
                        return Err(CodecError::Malformed("data behind the last gzip member"));
                    }
                }
            }
        }
        Ok(Progress { consumed, boundary: None })
    }

    /// Whether the input may end here.
    pub(crate) fn may_end(&self) -> bool {
        self.started && matches!(self.state, State::Between | State::Padding)
    }
}

impl Header {
    /// Takes the next byte; `None` when the header is complete.
    fn next(self, byte: u8) -> Result<Option<Self>, CodecError> {
        Ok(match self {
            Self::Fixed { have, flags } => {
                let fits = match have {
                    0 => byte == 0x1f,
                    1 => byte == 0x8b,
                    2 => byte == 8,
                    3 => byte & 0xe0 == 0,
                    _ => true,
                };
                if !fits {
                    return Err(BAD_HEADER);
                }
                let flags = if have == 3 { byte } else { flags };
                match have {
                    9 => Self::after_fixed(flags),
                    _ => Some(Self::Fixed { have: have + 1, flags }),
                }
            }
            Self::ExtraLength { have: 0, flags, .. } => {
                let length = u16::from(byte);
                Some(Self::ExtraLength { have: 1, length, flags })
            }
            Self::ExtraLength { length, flags, .. } => match length | u16::from(byte) << 8 {
                0 => Self::after_extra(flags),
                left => Some(Self::Extra { left, flags }),
            },
            Self::Extra { left: 1, flags } => Self::after_extra(flags),
            Self::Extra { left, flags } => Some(Self::Extra { left: left - 1, flags }),
            Self::Name { flags } if byte == 0 => Self::after_name(flags),
            Self::Comment { flags } if byte == 0 => Self::after_comment(flags),
            Self::Checksum { left: 1 } => None,
            Self::Checksum { left } => Some(Self::Checksum { left: left - 1 }),
            same => Some(same),
        })
    }

    fn after_fixed(flags: u8) -> Option<Self> {
        match flags & FEXTRA {
            0 => Self::after_extra(flags),
            _ => Some(Self::ExtraLength { have: 0, length: 0, flags }),
        }
    }

    fn after_extra(flags: u8) -> Option<Self> {
        match flags & FNAME {
            0 => Self::after_name(flags),
            _ => Some(Self::Name { flags }),
        }
    }

    fn after_name(flags: u8) -> Option<Self> {
        match flags & FCOMMENT {
            0 => Self::after_comment(flags),
            _ => Some(Self::Comment { flags }),
        }
    }

    fn after_comment(flags: u8) -> Option<Self> {
        // The header's own checksum is passed over: the blob's digest covers it.
        (flags & FHCRC != 0).then_some(Self::Checksum { left: 2 })
    }
}
