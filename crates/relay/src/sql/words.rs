//! Which bytes make words.

/// Letters, digits, `_`, `$` and every byte of a multi-byte character.
pub const WORD: [bool; 256] = {
    let mut table = [false; 256];
    let mut b = 0u8;
    loop {
        table[b as usize] = b.is_ascii_alphanumeric() || b == b'_' || b == b'$' || b >= 0x80;
        if b == u8::MAX {
            break table;
        }
        b += 1;
    }
};
