//! Slips in the text of a value: characters that nobody sees, quotes that count, variables that nobody has expanded.
//! Nothing here repeats the value, which can be a secret.

/// Whether a reader does not see the character, or takes it for an ordinary blank. Those of Unicode's
/// `Default_Ignorable_Code_Point`, controls, blanks other than U+0020, and what stands for bytes that could not be
/// read.
pub(super) fn is_invisible(c: char) -> bool {
    c.is_control()
        || c.is_whitespace() && c != ' '
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffd}' | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

/// Refuses characters that a reader does not see: in a name, path or password they are a slip, and an injection where
/// they reach a header or a log. `may_have_lines`: PEM has.
///
/// # Errors
/// Which character it is, and where: counted in characters from 1, without the blanks at the value's beginning.
pub(super) fn check_visible(text: &str, may_have_lines: bool) -> Result<(), String> {
    let is_line_break = |c| may_have_lines && matches!(c, '\n' | '\r');
    let found = text.chars().enumerate().find(|(_, c)| is_invisible(*c) && !is_line_break(*c));
    let Some((index, c)) = found else { return Ok(()) };
    let hint = match c {
        '\t' | '\n' | '\r' | '\u{c}' => {
            " (in a properties file \\t, \\n, \\r and \\f stand for such, and \\\\ for a backslash)"
        }
        _ => "",
    };
    Err(format!("has {} as character {}; remove it{hint}", describe(c), index + 1))
}

fn describe(c: char) -> String {
    let name = match c {
        '\t' => "a tab",
        '\n' | '\r' | '\u{85}' | '\u{2028}' | '\u{2029}' => "a line break",
        '\u{ad}' => "a soft hyphen",
        '\u{200b}' => "a zero width space",
        '\u{200c}' | '\u{200d}' => "a zero width joiner",
        '\u{feff}' => "a byte order mark",
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
            "a mark for the direction of writing"
        }
        '\u{fffd}' => "what stands for bytes that could not be read",
        _ if c.is_control() => "a control character",
        _ if c.is_whitespace() => "a blank that is none of the keyboard's",
        _ => "an invisible character",
    };
    format!("{name} (U+{:04X})", u32::from(c))
}

/// Refuses what is not `allowed` in a secret of one kind.
///
/// # Errors
/// Where the first such character is, and not which.
pub(super) fn check_characters(text: &str, allowed: fn(char) -> bool, what: &str) -> Result<(), String> {
    if let Some(slip) = slip(text) {
        return Err(slip);
    }
    match text.chars().position(|c| !allowed(c)) {
        None => Ok(()),
        Some(index) => Err(format!("has as character {} what {what} has not; copy it again", index + 1)),
    }
}

/// A value that was meant to be something else: `"in quotes"`, `$VARIABLE`. A password can be so by chance.
pub(super) fn slip(text: &str) -> Option<String> {
    const QUOTES: [(char, char); 7] =
        [('"', '"'), ('\'', '\''), ('`', '`'), ('“', '”'), ('‘', '’'), ('「', '」'), ('«', '»')];
    if QUOTES.iter().any(|&(open, close)| text.strip_prefix(open).is_some_and(|rest| rest.ends_with(close))) {
        return Some(
            "stands in quotes, and they count as a part of it; remove the first and the last character".to_owned(),
        );
    }
    if is_variable(text) || text.strip_prefix("{{").is_some_and(|rest| rest.ends_with("}}")) {
        return Some(
            "looks like a variable that nothing has expanded; write ${env:NAME} for the variable NAME".to_owned(),
        );
    }
    None
}

/// A path that a shell would have expanded.
pub(super) fn slip_of_path(path: &str) -> Option<String> {
    let first = path.split('/').next().unwrap_or_default();
    (first == "~" || is_variable(first) || path.starts_with("file:")).then(|| {
        "begins with what a shell or a browser takes for a folder, and this program does not; write the whole path, or \
         ${env:NAME} for the variable NAME"
            .to_owned()
    })
}

/// `$NAME`, `$(NAME)`, `%NAME%`.
fn is_variable(text: &str) -> bool {
    let inner = |start: &str, end: &str| text.strip_prefix(start).and_then(|rest| rest.strip_suffix(end));
    let name = inner("$(", ")").or_else(|| inner("%", "%")).or_else(|| inner("$", ""));
    name.is_some_and(|name| {
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_sees_is_named_with_its_position() {
        let rows = [
            ("Sesame\u{200b}", "a zero width space (U+200B) as character 7"),
            ("\u{feff}Sesame", "a byte order mark (U+FEFF) as character 1"),
            ("Ses\u{a0}ame", "a blank that is none of the keyboard's (U+00A0) as character 4"),
            ("会话\u{3000}存档", "a blank that is none of the keyboard's (U+3000) as character 3"),
            ("Se\u{200d}same", "a zero width joiner (U+200D) as character 3"),
            ("Se\u{202e}same", "a mark for the direction of writing (U+202E) as character 3"),
            ("Se\u{2066}same", "a mark for the direction of writing (U+2066) as character 3"),
            ("Se\u{ad}same", "a soft hyphen (U+00AD) as character 3"),
            ("Se\u{fe0f}same", "an invisible character (U+FE0F) as character 3"),
            ("Se\u{e0041}same", "an invisible character (U+E0041) as character 3"),
            ("Se\u{fffd}same", "what stands for bytes that could not be read (U+FFFD) as character 3"),
            ("Se\u{0}same", "a control character (U+0000) as character 3"),
            ("Se\u{85}same", "a line break (U+0085) as character 3"),
            ("pass\tword", "a tab (U+0009) as character 5; remove it (in a properties file \\t"),
        ];
        for (text, expected) in rows {
            let message = check_visible(text, false).expect_err(expected);
            assert!(message.contains(expected) && !message.contains("same"), "{text:?}: {message}");
        }
        for text in ["", "a b", "密码 é 😀", "#!\"$%&'()*+,-./:;<=>?@[\\]^_`{|}~"] {
            assert_eq!(check_visible(text, false), Ok(()));
        }
        assert_eq!(check_visible("one\r\ntwo", true), Ok(()));
    }

    #[test]
    fn what_was_meant_to_be_something_else_is_said() {
        for text in ["\"Sesame\"", "'Sesame'", "`Sesame`", "“Sesame”", "\"\"", "「Sesame」"] {
            assert!(slip(text).is_some_and(|it| it.contains("quotes") && !it.contains("Sesame")), "{text}");
        }
        for text in ["$WECOM_SECRET", "$(WECOM_SECRET)", "%WECOM_SECRET%", "{{ wecom_secret }}", "$x"] {
            assert!(slip(text).is_some_and(|it| it.contains("${env:NAME}") && !it.contains("SECRET")), "{text}");
        }
        for text in ["", "\"", "'", "\"half", "pa\"ss", "it's", "$", "$5", "a$b", "^a$", "100%", "%", "$a-b", "{}"] {
            assert_eq!(slip(text), None, "{text}");
        }
        for (path, is_slip) in [
            ("~/keys", true),
            ("$HOME/keys", true),
            ("file:///keys", true),
            ("~", true),
            ("/keys", false),
            ("keys~/a", false),
            ("./$x", false),
        ] {
            assert_eq!(slip_of_path(path).is_some(), is_slip, "{path}");
        }
    }
}
