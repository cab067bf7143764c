//! Characters that make one text look like another.

/// Whether the character ends a line or turns the direction of writing: in one line of text it would show as something else.
#[must_use]
pub fn breaks_a_line(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Whether the character shows as nothing. A name may need some of them, as Persian and emoji do; an address needs none.
pub(super) fn is_invisible(character: char) -> bool {
    breaks_a_line(character)
        || character.is_whitespace()
        || matches!(character, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2060}'..='\u{2064}' | '\u{feff}')
}
