//! Guesses: which known name somebody meant who wrote another one.

/// Likeness from which on a name is worth a guess.
const LIKENESS_MIN: f64 = 0.75;

/// The known name most like `name`, if any is like it.
pub fn guess<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let name = name.to_ascii_lowercase();
    known
        .map(|candidate| (strsim::jaro_winkler(&name, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// The known name of which `name` is a near miss: it differs in case, or by one letter that is wrong, missing, too many or in
/// its neighbour's place. Short names have many neighbours, so that more would take other words for typing errors.
pub fn near_miss<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    if name.len() > known.iter().map(|known| known.len()).max().unwrap_or_default() + 1 {
        return None; // and however long it is, that costs nothing
    }
    let name = name.to_ascii_lowercase();
    known.iter().copied().find(|known| strsim::osa_distance(&name, known) <= 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likest_name_is_guessed_and_none_that_is_unlike() {
        let known = ["key", "ttl", "prefix", "limit"];
        let guessed = |name: &str| guess(name, known.into_iter());
        assert_eq!(guessed("tll"), Some("ttl"));
        assert_eq!(guessed("prefx"), Some("prefix"));
        assert_eq!(guessed("Prefix"), Some("prefix"));
        assert_eq!(guessed("lim"), Some("limit"));
        assert_eq!(guessed("colour"), None);
    }

    #[test]
    fn a_near_miss_is_one_letter_away() {
        for (name, meant) in [
            ("tll", "ttl"),
            ("TTL", "ttl"),
            ("Key", "key"),
            ("keys", "key"),
            ("ky", "key"),
            ("kye", "key"),
            ("vlaue", "value"),
            ("values", "value"),
            ("valeu", "value"),
        ] {
            assert_eq!(near_miss(name, &["key", "value", "ttl"]), Some(meant), "{name}");
        }
        for name in [
            "id",
            "type",
            "name",
            "n",
            "val",
            "valid",
            "title",
            "timestamp",
            "key_id",
            "tags",
            "",
            &"key".repeat(99),
        ] {
            assert_eq!(near_miss(name, &["key", "value", "ttl"]), None, "{name}");
        }
    }
}
