//! x
#[derive(Clone)]
pub struct Samples;
pub struct SamplesOptions { pub connect: Vec<String>, pub listen: Vec<String>}
impl Samples { pub async fn open(_: SamplesOptions) -> Result<Self, std::io::Error> { Ok(Self) } pub async fn close(&self) {} }
