//! "Did you mean": the nearest of a few known words.

/// The Levenshtein distance of two words in characters, a swap of neighbours counting as one.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(before[j - 2] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

/// The candidate that `word` most likely stands for, if one is near enough.
pub(super) fn closest<'c>(
    word: &str,
    candidates: impl IntoIterator<Item = &'c str>,
) -> Option<&'c str> {
    let length = word.chars().count();
    // Long texts are no misspelt keys, and the distance costs their product.
    if length > 64 {
        return None;
    }
    let word = word.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (distance(&word, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| {
            *distance <= (length.max(candidate.len()) / 3).max(1)
                && *distance < candidate.len().max(length)
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// "did you mean …?" where a candidate is near, else the list of all.
pub(super) fn hint<'c>(
    word: &str,
    candidates: impl IntoIterator<Item = &'c str> + Clone,
    otherwise: &str,
) -> String {
    match closest(word, candidates.clone()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => {
            let all: Vec<&str> = candidates.into_iter().collect();
            match all.as_slice() {
                [] => "there is none to name: leave it out".to_owned(),
                all => format!("{otherwise} {}", all.join(", ")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_found_and_far_ones_are_not() {
        let keys = ["image", "name", "network", "networks", "env", "cmd", "dns"];
        for (word, near) in [
            ("imagee", Some("image")),
            ("iamge", Some("image")),
            ("netwrk", Some("network")),
            ("ENV", Some("env")),
            ("nam", Some("name")),
            ("entirely", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(closest(word, keys), near, "{word}");
        }
        assert_eq!(closest(&"image".repeat(1000), keys), None);
    }
}
