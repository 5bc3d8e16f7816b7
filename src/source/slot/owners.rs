//! Who owns the tables, and whether walhook's role may be made a member of that role.
//!
//! Publishing a table needs the privileges of its owner. A membership hands out all that the owner has and may become, so it
//! is never advised of a role that is more than an owner of tables: a superuser, one with REPLICATION, BYPASSRLS or
//! CREATEROLE, one of the server's or of a managed service's own, or a member of one of these.

use std::collections::{HashMap, HashSet};

use tokio_postgres::{Client, Row};

use super::error::{PrepareError, bounded, misread};
use super::names::{ENCODING, Name};

/// How roles begin that Postgres or a managed service keeps for itself (RDS, Cloud SQL, Azure, AlloyDB, Supabase, Neon).
const RESERVED: [&str; 8] = ["pg_", "rds", "cloudsql", "azure", "alloydb", "supabase", "neon", "google"];

/// The owner of a relation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Name.
    pub name: String,
    /// Why walhook's role should not be a member of it, as the end of a sentence that begins with "it"; `None`: it may.
    pub hindrance: Option<String>,
    /// It may make publications in this database, or nobody knows.
    pub may_create: bool,
}

/// What a role is, beside its name.
#[derive(Debug, Clone, Default)]
struct Role {
    name: String,
    is_superuser: bool,
    replicates: bool,
    bypasses_rls: bool,
    creates_roles: bool,
    /// The role of this session.
    is_own: bool,
    /// It may not make anything in this database.
    is_barred: bool,
}

/// All roles with their memberships, as far as the server shows them.
#[derive(Debug, Default)]
pub(crate) struct Roles {
    roles: HashMap<u32, Role>,
    /// What each role is a member of, by whichever option: one that may not be used today may be allowed tomorrow.
    memberships: HashMap<u32, Vec<u32>>,
}

fn roles(may_create: &str) -> String {
    format!(
        "
select r.oid, convert_to(r.rolname::text, {ENCODING}), r.rolsuper, r.rolreplication, r.rolbypassrls, r.rolcreaterole,
       r.rolname = current_user, not {may_create}
  from pg_roles r"
    )
}

/// Reads them. What the server refuses to show stays unknown, and of an unknown role nobody is advised to become a member.
pub(crate) async fn read(client: &Client) -> Result<Roles, PrepareError> {
    let doing = "read the roles";
    let mut all = Roles::default();
    let may_create = "has_database_privilege(r.oid, current_database(), 'CREATE')";
    let rows = match bounded(doing, client.query(&roles(may_create), &[])).await {
        Err(error) if error.is_refusal() => bounded(doing, client.query(&roles("true"), &[])).await,
        rows => rows,
    };
    let members = bounded(doing, client.query("select member, roleid from pg_auth_members", &[])).await;
    let (Ok(rows), Ok(members)) = (rows, members) else { return Ok(all) };
    for row in &rows {
        let (oid, role) = Role::of_row(row).map_err(misread(doing))?;
        all.roles.insert(oid, role);
    }
    for row in &members {
        let (member, of) = membership(row).map_err(misread(doing))?;
        all.memberships.entry(member).or_default().push(of);
    }
    Ok(all)
}

fn membership(row: &Row) -> Result<(u32, u32), tokio_postgres::Error> {
    Ok((row.try_get(0)?, row.try_get(1)?))
}

impl Role {
    /// With its OID.
    fn of_row(row: &Row) -> Result<(u32, Self), tokio_postgres::Error> {
        let Name(name) = row.try_get(1)?;
        let role = Self {
            name,
            is_superuser: row.try_get(2)?,
            replicates: row.try_get(3)?,
            bypasses_rls: row.try_get(4)?,
            creates_roles: row.try_get(5)?,
            is_own: row.try_get(6)?,
            is_barred: row.try_get(7)?,
        };
        Ok((row.try_get(0)?, role))
    }
}

impl Roles {
    /// The role with this OID as an owner.
    pub(crate) fn owner(&self, oid: u32) -> Owner {
        let name = self.roles.get(&oid).map_or_else(|| format!("role {oid}"), |role| role.name.clone());
        let may_create = self.roles.get(&oid).is_none_or(|role| !role.is_barred);
        Owner { name, hindrance: self.hindrance(oid), may_create }
    }

    fn hindrance(&self, oid: u32) -> Option<String> {
        let Some(own) = self.roles.get(&oid) else { return Some("cannot be looked at".to_owned()) };
        if let Some(why) = own.is_more() {
            return Some(why);
        }
        let (mut seen, mut next) = (HashSet::from([oid]), vec![oid]);
        while let Some(oid) = next.pop() {
            for oid in self.memberships.get(&oid).into_iter().flatten().filter(|oid| seen.insert(**oid)) {
                next.push(*oid);
                let Some(role) = self.roles.get(oid) else { return Some("is a member of an unknown role".to_owned()) };
                if let Some(why) = role.is_more() {
                    return Some(format!("is a member of {}, which {why}", role.name));
                }
            }
        }
        None
    }
}

impl Role {
    /// Why it is more than an owner of tables.
    fn is_more(&self) -> Option<String> {
        let is_reserved = RESERVED.iter().any(|start| self.name.to_lowercase().starts_with(start));
        let whys = [
            (self.is_superuser, "is a superuser"),
            (self.replicates, "has REPLICATION"),
            (self.bypasses_rls, "has BYPASSRLS"),
            (self.creates_roles, "has CREATEROLE"),
            (is_reserved, "belongs to the server or its service"),
            (self.name.contains(char::REPLACEMENT_CHARACTER), "has a name that is no UTF-8"),
            (self.is_own, "is walhook's own role"),
        ];
        whys.iter().find(|(is_so, _)| *is_so).map(|(_, why)| (*why).to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(name: &str) -> Role {
        Role { name: name.to_owned(), ..Role::default() }
    }

    fn roles(memberships: &[(u32, u32)]) -> Roles {
        let list = [
            role("app"),
            Role { is_superuser: true, ..role("postgres") },
            Role { replicates: true, ..role("replicator") },
            Role { bypasses_rls: true, ..role("auditor") },
            Role { creates_roles: true, ..role("manager") },
            role("pg_monitor"),
            role("rds_superuser"),
            role("cloudsqlsuperuser"),
            role("azure_pg_admin"),
            role("Readers \"all\""),
            Role { is_own: true, ..role("walhook") },
        ];
        let mut all = Roles { roles: (0..).zip(list).collect(), ..Roles::default() };
        for (member, of) in memberships {
            all.memberships.entry(*member).or_default().push(*of);
        }
        all
    }

    #[test]
    fn a_membership_is_advised_of_owners_of_tables_only() {
        let expected = [
            (0, None),
            (1, Some("is a superuser")),
            (2, Some("has REPLICATION")),
            (3, Some("has BYPASSRLS")),
            (4, Some("has CREATEROLE")),
            (5, Some("belongs to the server or its service")),
            (6, Some("belongs to the server or its service")),
            (7, Some("belongs to the server or its service")),
            (8, Some("belongs to the server or its service")),
            (9, None),
            (99, Some("cannot be looked at")),
        ];
        for (oid, hindrance) in expected {
            assert_eq!(roles(&[]).owner(oid).hindrance.as_deref(), hindrance, "{oid}");
        }
        assert_eq!(roles(&[]).owner(9).name, "Readers \"all\"");
    }

    #[test]
    fn what_an_owner_is_a_member_of_counts_at_any_distance_and_in_circles() {
        let hindrance = |memberships: &[(u32, u32)]| roles(memberships).owner(0).hindrance;
        assert_eq!(hindrance(&[(0, 9), (9, 0)]), None);
        let far = hindrance(&[(0, 9), (9, 1)]);
        assert_eq!(far.as_deref(), Some("is a member of postgres, which is a superuser"));
        let own = hindrance(&[(0, 10)]);
        assert_eq!(own.as_deref(), Some("is a member of walhook, which is walhook's own role"));
        assert_eq!(hindrance(&[(0, 77)]).as_deref(), Some("is a member of an unknown role"));
        assert_eq!(hindrance(&[(9, 1)]), None, "what others are is of no account");
    }
}
