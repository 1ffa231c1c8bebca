//! What is to be sent: a range of the input as long as nothing has to be changed, a copy from then on.

use std::ops::Range;

/// Gathers what goes out of one chunk of input.
#[derive(Debug)]
pub(crate) struct OutputBuffer<'a> {
    input: &'a [u8],
    range: Range<usize>,
    copy: &'a mut Vec<u8>,
    copied: bool,
}

impl<'a> OutputBuffer<'a> {
    /// Nothing yet. `copy` is scratch; what is in it is thrown away.
    pub(crate) fn new(input: &'a [u8], copy: &'a mut Vec<u8>) -> Self {
        copy.clear();
        Self { input, range: 0..0, copy, copied: false }
    }

    /// Sends this part of the input on as it is.
    pub(crate) fn pass(&mut self, range: Range<usize>) {
        if self.copied {
            self.copy.extend_from_slice(&self.input[range]);
        } else if self.range.is_empty() {
            self.range = range;
        } else if self.range.end == range.start {
            self.range.end = range.end;
        } else {
            self.buffer();
            self.copy.extend_from_slice(&self.input[range]);
        }
    }

    /// Where to write what is not in the input.
    pub(crate) fn buffer(&mut self) -> &mut Vec<u8> {
        if !self.copied {
            self.copied = true;
            self.copy.extend_from_slice(&self.input[self.range.clone()]);
        }
        self.copy
    }

    /// All of it, when nothing more comes.
    pub(crate) fn into_bytes(self) -> &'a [u8] {
        if self.copied { self.copy } else { &self.input[self.range] }
    }

    /// All of it.
    pub(crate) fn bytes(&self) -> &[u8] {
        if self.copied { self.copy } else { &self.input[self.range.clone()] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjacent_ranges_are_one_and_the_rest_is_copied_in_order() {
        let mut copy = vec![9];
        let mut output = OutputBuffer::new(b"0123456789", &mut copy);
        output.pass(2..4);
        output.pass(4..6);
        assert_eq!(output.bytes(), b"2345");
        output.pass(7..8);
        assert_eq!(output.bytes(), b"23457");
        output.buffer().extend_from_slice(b"xy");
        output.pass(9..10);
        assert_eq!(output.bytes(), b"23457xy9");
    }
}
