//! What a shared object is for, by its first bytes. The loader passes over a library for another CPU, and then says that there
//! is no such file.

use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The file header up to and with `e_machine`.
const HEADER_BYTES: usize = 20;

/// `EI_CLASS`, `e_machine` and name of what the vendor's packages and their likely mix-ups are for.
const CPUS: [(u8, u16, &str); 4] =
    [(2, 62, "x86-64"), (2, 183, "aarch64"), (1, 3, "32-bit x86"), (1, 40, "32-bit ARM")];

/// The CPU this program is for, in the words of [`CPUS`].
const THIS_CPU: &str = if cfg!(target_arch = "x86_64") { "x86-64" } else { std::env::consts::ARCH };

/// Why this file cannot be a library for this machine. `None` where nothing in its header speaks against it, and where it
/// cannot be read: what the loader says is right then.
pub fn misfit(path: &Path) -> Option<String> {
    let mut header = Vec::new();
    File::open(path).ok()?.take(HEADER_BYTES as u64).read_to_end(&mut header).ok()?;
    misfit_of(&header)
}

fn misfit_of(header: &[u8]) -> Option<String> {
    let &[0x7f, b'E', b'L', b'F', class, byte_order, .., first, second] = header else {
        return Some("it is no library for Linux (no ELF file)".into());
    };
    if header.len() < HEADER_BYTES {
        return Some("it ends within its header: a part of it is missing".into());
    }
    let machine = if byte_order == 2 { [second, first] } else { [first, second] };
    let machine = u16::from_le_bytes(machine);
    let cpu = CPUS.iter().find(|(of_class, of_machine, _)| (*of_class, *of_machine) == (class, machine));
    let cpu = cpu.map_or_else(|| format!("another CPU (ELF machine {machine})"), |(_, _, name)| (*name).to_owned());
    (cpu != THIS_CPU).then(|| format!("it is for {cpu}, this machine is {THIS_CPU}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(class: u8, byte_order: u8, machine: [u8; 2]) -> Vec<u8> {
        let mut header = vec![0; HEADER_BYTES];
        header[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, byte_order]);
        header[18..].copy_from_slice(&machine);
        header
    }

    #[test]
    fn a_header_tells_the_cpu() {
        let rows = [
            (header(2, 1, [62, 0]), "x86-64"),
            (header(2, 1, [183, 0]), "aarch64"),
            (header(1, 1, [3, 0]), "32-bit x86"),
            (header(1, 1, [40, 0]), "32-bit ARM"),
            (header(2, 2, [0, 22]), "another CPU (ELF machine 22)"),
            (header(1, 1, [62, 0]), "another CPU (ELF machine 62)"),
        ];
        for (header, cpu) in rows {
            let expected = (cpu != THIS_CPU).then(|| format!("it is for {cpu}, this machine is {THIS_CPU}"));
            assert_eq!(misfit_of(&header), expected);
        }
        for (bytes, expected) in [
            (&b""[..], "no ELF file"),
            (b"MZ\x90\0\x03\0\0\0\x04\0\0\0\xff\xff\0\0\xb8\0\0\0", "no ELF file"),
            (&header(2, 1, [62, 0])[..19], "ends within its header"),
        ] {
            assert!(misfit_of(bytes).is_some_and(|reason| reason.contains(expected)), "{bytes:?}");
        }
        assert_eq!(misfit(Path::new("/proc/self/exe")), None);
        assert_eq!(misfit(Path::new("/nonexistent")), None);
        assert_eq!(misfit(Path::new("/")), None);
    }
}
