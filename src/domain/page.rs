//! Lists in pages.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageSize(u16);

impl PageSize {
    pub const MAX: Self = Self(1000);

    /// Takes 1 to [`PageSize::MAX`].
    pub fn new(entries: i64) -> Option<Self> {
        let entries = u16::try_from(entries).ok()?;
        (1..=Self::MAX.0).contains(&entries).then_some(Self(entries))
    }

    pub fn get(self) -> i64 {
        self.0.into()
    }

    /// Rows to ask for: one more than a page has, which tells whether there is another page.
    pub fn rows(self) -> i64 {
        self.get() + 1
    }

    /// Makes a page of the [`PageSize::rows`] that were asked for.
    pub fn page<T>(self, mut rows: Vec<T>) -> Page<T> {
        let more = rows.len() > usize::from(self.0);
        rows.truncate(self.0.into());
        Page { entries: rows, more }
    }
}

impl Default for PageSize {
    fn default() -> Self {
        Self(100)
    }
}

#[derive(Clone, Debug)]
pub struct Page<T> {
    pub entries: Vec<T>,
    pub more: bool,
}

impl<T> Page<T> {
    /// The last entry, after which the next page starts, if there is one.
    pub fn next_after(&self) -> Option<&T> {
        self.entries.last().filter(|_| self.more)
    }
}
