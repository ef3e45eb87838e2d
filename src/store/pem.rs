//! Files of certificates and keys, for etcd's TLS and for that of reports.

use std::io::Read;
use std::path::Path;

use super::StoreError;

/// The largest file of certificates: the authorities of a whole operating system take a quarter of it.
const PEM_BYTES_MAX: u64 = 1 << 20;
const PEM_BEGINS: &[u8] = b"-----BEGIN ";

/// A file of certificates, or of a key.
pub(crate) fn pem(file: &Path) -> Result<Vec<u8>, StoreError> {
    let unread = |detail: String| StoreError::File { file: file.display().to_string(), detail };
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).map_err(|error| unread(error.to_string()))?;
    opened.take(PEM_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| unread(error.to_string()))?;
    if bytes.len() as u64 > PEM_BYTES_MAX {
        return Err(unread(format!("more than {PEM_BYTES_MAX} bytes")));
    }
    if !bytes.windows(PEM_BEGINS.len()).any(|window| window == PEM_BEGINS) {
        return Err(unread("nothing in it begins as PEM does".into()));
    }
    Ok(bytes)
}
