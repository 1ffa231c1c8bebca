//! The sources of the repository, for tests that read them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub(crate) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files of Rust below a folder, by their paths in the repository.
pub(crate) fn sources(folder: &str) -> BTreeMap<String, String> {
    let (mut all, mut folders) = (BTreeMap::new(), vec![PathBuf::from(folder)]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(repository().join(&folder)).unwrap() {
            let path = folder.join(entry.unwrap().file_name());
            let whole = repository().join(&path);
            if whole.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                all.insert(path.to_str().unwrap().to_owned(), std::fs::read_to_string(whole).unwrap());
            }
        }
    }
    all
}
