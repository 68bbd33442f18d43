//! Users and groups from `/etc/passwd` and `/etc/group`, read by hand: a static glibc has no NSS.
//!
//! Layout: passwd(5) `name:password:uid:gid:…`, group(5) `name:password:gid:member,member`.

use std::{fmt, fs, io};

use super::{Error, User};

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";
/// The user that `auto` looks for.
const SERVICE_USER: &str = "gophership";

/// A user as the kernel sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Name, where there is one.
    pub name: Option<String>,
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups; what they are set to where the user changes.
    pub groups: Vec<u32>,
}

impl Identity {
    /// As `chown` wants it.
    #[must_use]
    pub fn owner(&self) -> String {
        format!("{}:{}", self.uid, self.gid)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "user {name} (uid {})", self.uid),
            None => write!(f, "uid {}", self.uid),
        }
    }
}

/// Finds the configured user; `own` are the uid and gid of this process.
pub(super) fn find(wanted: &User, own: (u32, u32), may_change: bool) -> Result<Identity, Error> {
    let accounts = Accounts {
        passwd: read(PASSWD)?,
        group: read(GROUP)?,
    };
    accounts.find(wanted, own, may_change)
}

/// Absent in minimal images, where numbers still work.
fn read(path: &'static str) -> Result<String, Error> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(Error::Accounts { path, source }),
    }
}

struct Accounts {
    passwd: String,
    group: String,
}

impl Accounts {
    fn find(&self, wanted: &User, own: (u32, u32), may_change: bool) -> Result<Identity, Error> {
        match wanted {
            User::Auto => {
                let service = (own.0 == 0 && may_change).then(|| self.named(SERVICE_USER));
                Ok(service
                    .flatten()
                    .unwrap_or_else(|| self.numbered(own.0, Some(own.1))))
            }
            User::Named(name) => self
                .named(name)
                .ok_or_else(|| Error::UnknownUser { name: name.clone() }),
            User::Numeric { uid, gid } => Ok(self.numbered(*uid, *gid)),
        }
    }

    fn named(&self, name: &str) -> Option<Identity> {
        let (_, uid, gid) = self.users().find(|(found, ..)| *found == name)?;
        Some(self.identity(Some(name), uid, gid))
    }

    fn numbered(&self, uid: u32, gid: Option<u32>) -> Identity {
        let known = self.users().find(|(_, found, _)| *found == uid);
        let gid = gid.or(known.map(|(.., gid)| gid)).unwrap_or(uid);
        self.identity(known.map(|(name, ..)| name), uid, gid)
    }

    fn identity(&self, name: Option<&str>, uid: u32, gid: u32) -> Identity {
        let groups = name.map_or_else(Vec::new, |name| self.groups_of(name));
        Identity {
            name: name.map(str::to_owned),
            uid,
            gid,
            groups,
        }
    }

    fn users(&self) -> impl Iterator<Item = (&str, u32, u32)> {
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, _password) = (fields.next()?, fields.next()?);
            Some((
                name,
                fields.next()?.parse().ok()?,
                fields.next()?.parse().ok()?,
            ))
        })
    }

    fn groups_of(&self, user: &str) -> Vec<u32> {
        let group = |line: &str| {
            let mut fields = line.split(':').skip(2);
            let (gid, members) = (fields.next()?, fields.next()?);
            let is_member = members.split(',').any(|member| member.trim() == user);
            is_member.then(|| gid.parse().ok())?
        };
        self.group.lines().filter_map(group).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts {
            passwd: "root:x:0:0:root:/:/bin/sh\n# broken\n+nis\nlogs:x:990:980::/:/bin/false\n"
                .to_owned(),
            group: "root:x:0:\ntls:x:70:web,logs\nadm:x:4:syslogs\n".to_owned(),
        }
    }

    fn with_service_user() -> Accounts {
        let mut accounts = accounts();
        accounts.passwd += "gophership:x:991:981:::\n";
        accounts
    }

    #[test]
    fn a_name_brings_its_groups_and_only_those() {
        let found = accounts().find(&User::Named("logs".to_owned()), (0, 0), true);
        let expected = Identity {
            name: Some("logs".to_owned()),
            uid: 990,
            gid: 980,
            groups: vec![70],
        };
        assert_eq!(found.unwrap(), expected);
        let unknown = accounts().find(&User::Named("log".to_owned()), (0, 0), true);
        assert!(unknown.unwrap_err().to_string().contains("\"log\""));
    }

    #[test]
    fn numbers_need_no_entry() {
        let numeric = |uid, gid| {
            let found = accounts()
                .find(&User::Numeric { uid, gid }, (0, 0), true)
                .unwrap();
            (found.uid, found.gid, found.groups)
        };
        assert_eq!(numeric(5, None), (5, 5, vec![]));
        assert_eq!(numeric(5, Some(6)), (5, 6, vec![]));
        assert_eq!(numeric(990, None), (990, 980, vec![70]));
    }

    #[test]
    fn auto_is_the_service_user_for_root_alone() {
        let auto = |accounts: Accounts, own, may| accounts.find(&User::Auto, own, may).unwrap().uid;
        assert_eq!(auto(with_service_user(), (0, 0), true), 991);
        assert_eq!(auto(with_service_user(), (0, 0), false), 0, "no CAP_SETUID");
        assert_eq!(auto(with_service_user(), (1000, 1000), true), 1000);
        assert_eq!(auto(accounts(), (0, 0), true), 0, "no such user");
    }
}
