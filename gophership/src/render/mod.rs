//! Results on a screen or for a script, for both programs. A leaf: it knows none of the other modules.

pub mod table;
pub mod yaml;
