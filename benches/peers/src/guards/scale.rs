//! How much of everything is guarded.

use serde::{Deserialize, Serialize};

use super::tree::Shape;

/// What the claims speak of, or so little of it that only the working is shown.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Scale {
    pub quick: bool,
    /// Files that are touched, where nothing else is said.
    pub touched: usize,
    /// Trees for the curve of what is stored, the smallest first. The last is the one of the claims that speak of many
    /// files.
    pub stored: Vec<Shape>,
    /// The tree of most claims, and of the curve of what is touched.
    pub middle: Shape,
    /// How many files are touched in that curve.
    pub touches: Vec<usize>,
    /// One directory with all the files.
    pub flat: Shape,
    /// A directory for each file.
    pub narrow: Shape,
    /// The tree that commands are run over.
    pub exec: Shape,
    /// Trees larger than this are not guarded against any writer: every file is copied.
    any_up_to: usize,
    pub rounds: usize,
    /// So many files in all may be gone through file by file, to measure something several times.
    pub files: usize,
}

impl Scale {
    pub fn full() -> Self {
        Self {
            quick: false,
            touched: 10,
            stored: shapes(&[(1_000, 10), (10_000, 100), (100_000, 1_000), (1_000_000, 1_000)]),
            middle: Shape { files: 20_000, dirs: 200 },
            touches: vec![1, 10, 100, 1_000],
            flat: Shape { files: 200_000, dirs: 1 },
            narrow: Shape { files: 50_000, dirs: 50_000 },
            exec: Shape { files: 1_000_000, dirs: 1_000 },
            any_up_to: 100_000,
            rounds: 15,
            files: 50_000,
        }
    }

    pub fn quick() -> Self {
        Self {
            quick: true,
            touched: 10,
            stored: shapes(&[(100, 10), (1_000, 10), (3_000, 30)]),
            middle: Shape { files: 1_000, dirs: 20 },
            touches: vec![1, 10, 100],
            flat: Shape { files: 1_000, dirs: 1 },
            narrow: Shape { files: 200, dirs: 200 },
            exec: Shape { files: 3_000, dirs: 30 },
            any_up_to: 1_000,
            rounds: 2,
            files: 1_000,
        }
    }

    /// All trees, the largest last.
    pub fn trees(&self) -> Vec<Shape> {
        let mut trees = self.stored.clone();
        trees.extend([self.middle, self.flat, self.narrow]);
        trees.sort_by_key(|shape| shape.files);
        trees
    }

    pub fn smallest(&self) -> Shape {
        self.stored[0]
    }

    pub fn largest(&self) -> Shape {
        self.stored[self.stored.len() - 1]
    }

    /// Whether a tree is guarded against any writer, too.
    pub fn has_any(&self, shape: Shape) -> bool {
        shape.files <= self.any_up_to && shape != self.flat && shape != self.narrow
    }

    /// How often something is done that costs a step for each file.
    pub fn rounds_by_file(&self, shape: Shape) -> usize {
        (self.files / shape.files).clamp(1, 3)
    }

    /// How often something is done that looks at each file, or each directory.
    pub fn rounds_by_look(&self, shape: Shape) -> usize {
        (self.files * self.rounds / shape.files).clamp(self.rounds.min(5), self.rounds)
    }

    /// How often something is done that costs many steps for each file that is touched.
    pub fn rounds_by_touch(&self, touched: usize) -> usize {
        (100 * self.rounds / touched).clamp(self.rounds.min(5), 2 * self.rounds)
    }
}

fn shapes(counts: &[(usize, usize)]) -> Vec<Shape> {
    counts.iter().map(|&(files, dirs)| Shape { files, dirs }).collect()
}
