//! Made-up input for every decoder and every parser of what people write that computes only: the contract, messages,
//! intents, charts; and for what services read of requests and files, and agents of what they measure. A target takes any bytes, must not panic on them, and checks what must hold of what it read.
//!
//! - [`targets`]: what is tried; [`Made`]: seeded input, mutated from what is known to be good.
//! - A bounded run of each is a test (`tests/bounded.rs`); `cargo run -p fuzzing --bin fuzz -- --cases 1000000` is the long
//!   form.
//! - Never: a file, a clock, a process.

mod faces;
mod made;
mod measures;
mod targets;

pub use made::Made;
pub use targets::Target;

/// Every target.
pub fn targets() -> impl Iterator<Item = &'static Target> {
    targets::TARGETS.iter().chain(faces::FACES).chain(measures::MEASURES)
}

/// Tries a target on seeded input; gives how many inputs it read. Panics where the target does: `on` is told each input
/// before it is tried.
pub fn run(target: &Target, seed: u64, cases: u64, mut on: impl FnMut(&[u8])) -> u64 {
    let mut made = Made::new(seed, (target.good)());
    let mut read = 0;
    for _ in 0..cases {
        let input = made.input();
        on(&input);
        read += u64::from((target.try_on)(&input));
    }
    read
}
