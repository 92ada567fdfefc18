//! Room for the mesh while its data is copied: work goes in pieces, and each is followed by as long a rest.
//!
//! What is written is synced piece by piece: on most file systems a sync of nats-server's has to wait for all that others
//! have written and not synced.

use std::{
    fs::File,
    io::{self, Read as _, Write},
    path::Path,
    time::{Duration, Instant},
};

/// Bytes of a piece.
const PIECE_BYTES: usize = 512 << 10;
/// Bytes that are read at once.
const READ_BYTES: usize = 64 << 10;
/// Longest rest.
const REST_MAX: Duration = Duration::from_secs(1);

/// Where in its piece some work is.
pub(crate) struct Pace {
    begun: Instant,
    bytes: usize,
}

impl Pace {
    /// At the beginning of a piece.
    pub(crate) fn new() -> Self {
        Self { begun: Instant::now(), bytes: 0 }
    }

    /// Bytes were worked on. At the end of a piece, syncs and rests.
    fn worked(&mut self, bytes: usize, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.bytes += bytes;
        if self.bytes < PIECE_BYTES {
            return Ok(());
        }
        sync()?;
        std::thread::sleep(self.begun.elapsed().min(REST_MAX));
        *self = Self::new();
        Ok(())
    }

    /// Reads a file to its end; says how many bytes it had.
    pub(crate) fn read(
        &mut self,
        from: &mut File,
        mut see: impl FnMut(&[u8]) -> io::Result<()>,
        sync: impl Fn() -> io::Result<()>,
    ) -> io::Result<u64> {
        let (mut piece, mut bytes) = (vec![0; READ_BYTES], 0);
        loop {
            let read = from.read(&mut piece)?;
            if read == 0 {
                return Ok(bytes);
            }
            see(&piece[..read])?;
            bytes += read as u64;
            self.worked(read, &sync)?;
        }
    }

    /// Copies a file with its rights, as [`std::fs::copy`] does.
    pub(crate) fn copy(&mut self, source: &Path, target: &Path) -> io::Result<u64> {
        let (mut from, to) = (File::open(source)?, File::create(target)?);
        to.set_permissions(from.metadata()?.permissions())?;
        self.read(&mut from, |piece| (&to).write_all(piece), || to.sync_data())
    }
}

/// A file that is written piece by piece.
pub(crate) struct Paced<'f> {
    file: &'f mut File,
    pace: Pace,
}

impl<'f> Paced<'f> {
    /// Nothing is written yet.
    pub(crate) fn new(file: &'f mut File) -> Self {
        Self { file, pace: Pace::new() }
    }
}

impl Write for Paced<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.pace.worked(written, || self.file.sync_data())?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
