//! Whose fault an error of the database is. Pure. Nothing outside an object is ever charged to the object.

/// Who has to do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The record's: Postgres refuses a value.
    Record,
    /// A dependency's: the same again later succeeds.
    Dependency,
    /// The operator's: the same again fails until a person changes something.
    Operator,
    /// Nobody knows, so a person must look.
    Unknown,
}

/// Reads an SQLSTATE (<https://www.postgresql.org/docs/current/errcodes-appendix.html>). `constraint` is the one that was violated.
pub fn of_sqlstate(code: &str, constraint: Option<&str>) -> Fault {
    match code {
        // Our own constraints cannot fail by a record: a batch has each id once, the ledger each object. Any other is somebody's own.
        _ if code.starts_with("23") && constraint.is_some_and(is_ours) => Fault::Unknown,
        // The disk is full; a statement was cancelled; serialization, deadlock, a lock that is held; a replica after a
        // failover; out of memory or connections.
        "53100" | "57014" | "40001" | "40P01" | "55P03" | "25006" | "25P03" | "53200" | "53300" => Fault::Dependency,
        _ => match code.get(..2) {
            Some("22" | "23" | "54") => Fault::Record,
            // Connections, shutdowns and restarts, and passwords while they rotate.
            Some("08" | "57" | "28") => Fault::Dependency,
            Some("42" | "3D" | "3F") => Fault::Operator,
            _ => Fault::Unknown,
        },
    }
}

fn is_ours(constraint: &str) -> bool {
    constraint == "posts_pkey"
        || ["objects_", "quarantined_records_", "stream_"].iter().any(|table| constraint.starts_with(table))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_outside_an_object_is_charged_to_it() {
        for (codes, fault) in [
            (&["22003", "22P02", "22P05", "23502", "23505", "23514", "54000", "54001"][..], Fault::Record),
            (
                &["08006", "53100", "57P01", "57P03", "57014", "40001", "40P01", "55P03", "25006", "28P01"],
                Fault::Dependency,
            ),
            (&["42P01", "42501", "42703", "3D000", "3F000"], Fault::Operator),
            (&["XX000", "P0001", "0A000", "25P02", ""], Fault::Unknown),
        ] {
            for code in codes {
                assert_eq!(of_sqlstate(code, None), fault, "{code}");
            }
        }
        assert_eq!(of_sqlstate("23505", Some("posts_pkey")), Fault::Unknown);
        assert_eq!(of_sqlstate("23505", Some("objects_observation_key")), Fault::Unknown);
        assert_eq!(of_sqlstate("23505", Some("somebodys_own")), Fault::Record);
    }
}
