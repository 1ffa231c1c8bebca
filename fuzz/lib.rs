//! What the fuzz targets share: their promises, and how work is measured.

mod input;
mod measure;
mod promises;

/// Runs the promise of this name.
pub fn holds(name: &str, data: &[u8]) {
    let promise = promises::ALL.iter().find(|(known, _)| *known == name).map(|(_, promise)| promise);
    promise.unwrap_or_else(|| panic!("there is no promise {name}"))(data);
}
