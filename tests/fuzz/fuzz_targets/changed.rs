//! A real file with changes: random bytes hardly ever come past a header.

/// `real` with bytes changed: of three bytes the first two choose a place, the third is put there. One or two that are
/// left over cut the end off.
pub fn changed(real: &[u8], changes: &[u8]) -> Vec<u8> {
    let mut bytes = real.to_vec();
    for change in changes.chunks_exact(3) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % bytes.len();
        bytes[at] = change[2];
    }
    let cut = changes.len() % 3 * 7;
    bytes.truncate(bytes.len().saturating_sub(cut));
    bytes
}
