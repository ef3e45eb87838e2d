//! The known names that a misspelt one was probably meant to be.

/// Names this near are offered for a misspelt one (Jaro–Winkler, 0–1): one slip in a word of five letters.
const ALIKE_MIN: f64 = 0.8;

/// The known names nearest to a misspelt one, at most so many, the nearest first; none if none is near at all.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>, most: usize) -> Vec<&'a str> {
    let name = name.to_lowercase();
    let alike = known.into_iter().map(|known| (strsim::jaro_winkler(known, &name), known));
    let mut near: Vec<(f64, &str)> = alike.filter(|(alike, _)| *alike >= ALIKE_MIN).collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0));
    near.into_iter().map(|(_, known)| known).take(most).collect()
}
