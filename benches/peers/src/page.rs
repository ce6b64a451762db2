//! A page of claims: what all of them begin with, and how one is put together.

use std::fs;
use std::path::Path;

use journal_kb_peers::Result;

use crate::claims::Claim;
use crate::machine::Machine;
use crate::markdown::paragraph;
use crate::report;

/// One that is being written.
pub struct Page(String);

impl Page {
    /// Begins it: what it is of, and when, where and by which command it was made.
    pub fn new(title: &str, command: &str, quick: bool, machine: &Machine) -> Self {
        let mut page = Self(format!("# {title}\n\n"));
        if quick {
            page.0 += "**This page is of a quick run: too few samples to mean anything.**\n\n";
        }
        let made = "Every figure in digits on this page was measured and put here by";
        page.0 += &format!("{made}\n\n```sh\n{command}\n```\n\n");
        page.say(&report::made(machine));
        page
    }

    pub fn say(&mut self, text: &str) {
        self.0 += &paragraph(text);
    }

    /// What is claimed, as it was found in one place.
    pub fn claims(&mut self, place: &str, filesystem: &str, claims: &[Claim]) {
        let met = claims.iter().filter(|claim| claim.is_met()).count();
        self.0 += &format!("## On {place}\n\n");
        self.say(&format!("{filesystem}. Of {} claims {met} are met.", claims.len()));
        self.0 += &report::claimed(claims);
        self.0 += "\n";
    }

    /// Text as it is, which ends with its last line.
    pub fn put(&mut self, text: &str) {
        self.0 += text;
    }

    /// A part with a title of its own.
    pub fn part(&mut self, title: &str, text: &str) {
        self.0 += &format!("\n## {title}\n\n{text}");
    }

    pub fn write(self, path: &Path) -> Result<()> {
        let text = self.0.trim_end().to_owned() + "\n";
        Ok(fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))?)
    }
}
