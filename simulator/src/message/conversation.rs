//! Who talks to whom.

use crate::corp::Corp;
use crate::random::{ALPHANUMERIC, Random};

/// A conversation: a group, or two people.
#[derive(Debug, Clone)]
pub struct Conversation {
    /// The group's id; none for two people.
    pub room_id: Option<String>,
    /// At least two. The first is a member of the corp.
    pub people: Vec<String>,
    /// Whether somebody from outside takes part: then it is the last of `people`.
    pub is_external: bool,
}

const SURNAMES: &[&str] = &["zhang", "wang", "li", "zhao", "chen", "yang", "huang", "zhou", "wu", "xu", "sun", "ma"];
const NAMES: &[&str] =
    &["wei", "fang", "na", "min", "jing", "qiang", "lei", "jun", "yan", "jie", "tao", "ming", "chao", "hui"];

impl Conversation {
    /// The conversation `number` of the corp.
    pub fn of(corp: &Corp, number: u64) -> Self {
        let mut random = corp.random("conversation", number);
        let is_group = random.chance(corp.scenario.group_share);
        let is_external = random.chance(corp.scenario.external_share);
        let size = if is_group { random.between(3, 6) + random.below(4) * random.below(6) } else { 2 };
        let mut people: Vec<String> = (0..size).map(|place| member(&mut random, number, place)).collect();
        if is_external {
            let guest = people.len() - 1;
            people[guest] = outsider(&mut random);
        }
        let room_id = is_group.then(|| format!("wr{}", random.text(ALPHANUMERIC, 30)));
        Self { room_id, people, is_external }
    }

    /// A group of 4,000.
    pub fn crowd(corp: &Corp, number: u64) -> Self {
        let mut random = corp.random("crowd", number);
        let people = (0..4_000).map(|place| member(&mut random, number, place)).collect();
        Self { room_id: Some(format!("wr{}", random.text(ALPHANUMERIC, 30))), people, is_external: false }
    }

    /// Someone who takes part.
    pub fn somebody(&self, random: &mut Random) -> String {
        random.pick(&self.people).clone()
    }
}

/// Half of the members take part in many conversations; nobody takes part twice in one.
fn member(random: &mut Random, conversation: u64, place: u64) -> String {
    let number = if random.chance(0.5) { place } else { conversation * 100 + place };
    format!("{}{}{number}", random.pick(SURNAMES), random.pick(NAMES))
}

fn outsider(random: &mut Random) -> String {
    let kind = *random.pick(&["wm", "wo", "wm", "wm", "wb"]);
    format!("{kind}{}", random.text(ALPHANUMERIC, 30))
}
