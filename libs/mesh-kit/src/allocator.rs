//! The allocator of every program: mimalloc, with a count of what was asked of it.

use std::{
    alloc::{GlobalAlloc, Layout},
    cell::Cell,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use mimalloc::MiMalloc;

/// Counters are apart, so that threads do not wait for each other's cache lines.
const SHARDS: usize = 32;

/// Counts of the threads of one shard, on a cache line of their own.
#[repr(align(128))]
struct Shard {
    calls: AtomicU64,
    bytes: AtomicU64,
}

static COUNTED: [Shard; SHARDS] = [const { Shard { calls: AtomicU64::new(0), bytes: AtomicU64::new(0) } }; SHARDS];
static NEXT: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Shard of this thread; none yet. Without a destructor, so that it may be used while a thread ends.
    static SHARD: Cell<usize> = const { Cell::new(usize::MAX) };
}

fn count(bytes: usize) {
    let shard = SHARD.try_with(|own| {
        if own.get() == usize::MAX {
            own.set(NEXT.fetch_add(1, Relaxed) % SHARDS);
        }
        own.get()
    });
    let shard = &COUNTED[shard.unwrap_or_default()];
    shard.calls.fetch_add(1, Relaxed);
    shard.bytes.fetch_add(bytes as u64, Relaxed);
}

/// What a process has asked of its allocator since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allocated {
    /// Allocations, and changes of size.
    pub calls: u64,
    /// Bytes that were asked for.
    pub bytes: u64,
}

/// What this process has asked of its allocator; nothing in a program without [`allocator!`](crate::allocator).
pub fn allocated() -> Allocated {
    COUNTED.iter().fold(Allocated::default(), |sum, shard| Allocated {
        calls: sum.calls + shard.calls.load(Relaxed),
        bytes: sum.bytes + shard.bytes.load(Relaxed),
    })
}

/// mimalloc, counted.
#[derive(Debug)]
pub struct Counted;

#[expect(unsafe_code, reason = "an allocator is unsafe to write; every call is passed on as it came")]
// SAFETY: mimalloc keeps the contract of `GlobalAlloc`, and it alone makes and takes back what is handed out. Counting
// does not allocate: it adds to statics, and reads a thread-local without a destructor.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are those that mimalloc wants.
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer is mimalloc's; the caller's promises are those that it wants.
        unsafe { MiMalloc.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are those that mimalloc wants.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: the pointer is mimalloc's; the caller's promises are those that it wants.
        unsafe { MiMalloc.realloc(pointer, layout, size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_threads_ask_of_it_is_counted_with_its_bytes() {
        let before = allocated();
        let layout = Layout::from_size_align(1_000, 8).unwrap();
        #[expect(unsafe_code, reason = "an allocator is asked by unsafe calls")]
        // SAFETY: the layout is not empty; what is allocated is given back with the layout that it then has.
        unsafe {
            let pointer = Counted.alloc(layout);
            let pointer = Counted.realloc(pointer, layout, 3_000);
            Counted.dealloc(pointer, Layout::from_size_align(3_000, 8).unwrap());
        }
        let after = allocated();
        assert_eq!((after.calls - before.calls, after.bytes - before.bytes), (2, 4_000));
        // More threads than shards.
        let count = || (0..1_000).for_each(|_| count(7));
        std::thread::scope(|scope| (0..SHARDS * 2).for_each(|_| drop(scope.spawn(count))));
        assert_eq!(allocated().bytes - after.bytes, SHARDS as u64 * 2 * 7_000);
    }
}
