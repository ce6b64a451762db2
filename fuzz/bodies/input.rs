//! Bytes as choices. Where they end everything is zero, so a shorter input is a simpler one.

pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    /// A number below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        let wide = if n > 256 { usize::from(self.byte()) << 8 } else { 0 };
        (wide | usize::from(self.byte())) % n.max(1)
    }

    pub(crate) fn one<'t, T>(&mut self, of: &'t [T]) -> &'t T {
        &of[self.below(of.len())]
    }

    /// Any number, those on which code trips first.
    pub(crate) fn number(&mut self) -> i64 {
        const EDGES: [i64; 18] = [
            0,
            1,
            2,
            3,
            -1,
            255,
            4096,
            1 << 20,
            (1 << 20) + 1,
            1 << 24,
            1 << 31,
            1 << 32,
            (1 << 32) + 1,
            1 << 40,
            1 << 62,
            i64::MAX,
            i64::MIN,
            i64::MIN + 1,
        ];
        match self.byte() {
            choice if choice < 128 => EDGES[usize::from(choice) % EDGES.len()],
            _ => i64::from_le_bytes(std::array::from_fn(|_| self.byte())),
        }
    }

    /// Some bytes of the input, at most as many as one byte counts.
    pub(crate) fn bytes(&mut self) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(usize::from(self.byte()).min(self.0.len()));
        self.0 = rest;
        bytes
    }
}
