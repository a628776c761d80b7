//! The engines' framing of a container's output: eight bytes of header (stream, length) before each
//! piece, or, for a container with a terminal, the bare bytes.

/// Most bytes of one frame or line that are kept.
pub(super) const LINE_LIMIT: usize = 64 << 10;

const HEADER: usize = 8;

/// One piece of output.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame {
    /// Whether it came on standard error.
    pub stderr: bool,
    /// Its bytes, the first [`LINE_LIMIT`] and a time stamp's length of them.
    pub payload: Vec<u8>,
    /// Whether this is a whole frame: bare bytes come cut anywhere.
    pub whole: bool,
}

/// Takes the framing off.
#[derive(Debug, Default)]
pub(super) struct Frames {
    bare: Option<bool>,
    header: Vec<u8>,
    payload: Vec<u8>,
    remaining: usize,
}

impl Frames {
    /// Room for the time stamp that an engine writes before a line.
    const KEPT: usize = LINE_LIMIT + 64;

    /// Takes the next bytes and gives the frames that they complete.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> Vec<Frame> {
        let mut frames = Vec::new();
        while !bytes.is_empty() {
            if self.bare == Some(true) {
                frames.push(bare(bytes.to_vec()));
                break;
            }
            if self.remaining == 0 {
                let taken = bytes.len().min(HEADER - self.header.len());
                self.header.extend_from_slice(&bytes[..taken]);
                bytes = &bytes[taken..];
                if self.bare.is_none() && !could_be_header(&self.header) {
                    self.bare = Some(true);
                    frames.push(bare(std::mem::take(&mut self.header)));
                    continue;
                }
                let Ok([_, _, _, _, length @ ..]) = <[u8; HEADER]>::try_from(&self.header[..])
                else {
                    break;
                };
                self.bare = Some(false);
                self.remaining = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
                if self.remaining == 0 {
                    self.header.clear();
                }
                continue;
            }
            let taken = bytes.len().min(self.remaining);
            let kept = taken.min(Self::KEPT - self.payload.len());
            self.payload.extend_from_slice(&bytes[..kept]);
            bytes = &bytes[taken..];
            self.remaining -= taken;
            if self.remaining == 0 {
                frames.extend(self.finish());
            }
        }
        frames
    }

    /// What came of a frame that the stream broke off in.
    pub(super) fn finish(&mut self) -> Option<Frame> {
        let stderr = self.header.first() == Some(&2);
        self.header.clear();
        self.remaining = 0;
        let payload = std::mem::take(&mut self.payload);
        (!payload.is_empty()).then_some(Frame {
            stderr,
            payload,
            whole: true,
        })
    }
}

fn bare(payload: Vec<u8>) -> Frame {
    Frame {
        stderr: false,
        payload,
        whole: false,
    }
}

fn could_be_header(start: &[u8]) -> bool {
    start.iter().enumerate().all(|(index, byte)| match index {
        0 => *byte <= 2,
        1..=3 => *byte == 0,
        _ => true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(stream: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![stream, 0, 0, 0];
        bytes.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn frames_survive_any_cut() {
        let mut bytes = framed(1, b"one\n");
        bytes.extend(framed(2, b"two\n"));
        bytes.extend(framed(1, b""));
        bytes.extend(framed(1, b"three"));
        for size in 1..bytes.len() {
            let mut frames = Frames::default();
            let found: Vec<(bool, Vec<u8>)> = bytes
                .chunks(size)
                .flat_map(|chunk| frames.feed(chunk))
                .map(|frame| (frame.stderr, frame.payload))
                .collect();
            assert_eq!(
                found,
                [
                    (false, b"one\n".to_vec()),
                    (true, b"two\n".to_vec()),
                    (false, b"three".to_vec())
                ],
                "in pieces of {size}"
            );
        }
    }

    #[test]
    fn bare_output_passes_as_it_is() {
        let mut frames = Frames::default();
        let found = frames.feed(b"hello\nworld");
        assert_eq!(found.iter().map(|f| f.payload.len()).sum::<usize>(), 11);
        assert!(found.iter().all(|frame| !frame.whole && !frame.stderr));
    }

    #[test]
    fn huge_frame_is_cut_and_the_next_one_found() {
        let mut bytes = framed(1, &vec![b'x'; LINE_LIMIT * 3]);
        bytes.extend(framed(2, b"next"));
        let mut frames = Frames::default();
        let found: Vec<Frame> = bytes
            .chunks(4096)
            .flat_map(|chunk| frames.feed(chunk))
            .collect();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].payload.len(), Frames::KEPT);
        assert_eq!(found[1].payload, b"next");
    }

    #[test]
    fn broken_frame_gives_what_came() {
        let mut frames = Frames::default();
        let bytes = framed(1, b"whole line");
        assert!(frames.feed(&bytes[..12]).is_empty());
        assert_eq!(frames.finish().unwrap().payload, b"whol");
    }
}
