//! Whether messages come in the order that is theirs: those of one customer by ascending ids, each once.

use anyhow::Context as _;
use memchr::memmem::Finder;

use crate::ground::CUSTOMERS;

/// How a row of the load begins: its columns are rendered in the order of the table's.
const ID: &[u8] = b"\"record\":{\"id\":";
const CUSTOMER: &[u8] = b",\"customer_id\":";

/// The last id of each customer.
#[derive(Debug, Default)]
pub(crate) struct Order {
    last: Vec<u64>,
    wrong: u64,
}

impl Order {
    /// Takes the messages of a body. The load numbers its rows from 1 and gives them to the customers in turn, so
    /// the next row of a customer is known.
    pub(crate) fn see(&mut self, body: &[u8]) -> anyhow::Result<()> {
        let customers = u64::from(CUSTOMERS);
        self.last.resize(usize::try_from(customers)?, 0);
        for at in Finder::new(ID).find_iter(body) {
            let (id, rest) = number(body.get(at + ID.len()..).unwrap_or_default())?;
            let (customer, _) = number(rest.strip_prefix(CUSTOMER).context("a row without a customer")?)?;
            let last = self.last.get_mut(usize::try_from(customer)?).context("an unknown customer")?;
            let first = if customer == 0 { customers } else { customer };
            let next = if *last == 0 { first } else { *last + customers };
            self.wrong += u64::from(id != next);
            *last = id;
        }
        Ok(())
    }

    /// Messages that were not the next of their customer.
    pub(crate) fn wrong(&self) -> u64 {
        self.wrong
    }
}

/// The digits at the beginning, and what follows them.
fn number(bytes: &[u8]) -> anyhow::Result<(u64, &[u8])> {
    let digits = bytes.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(bytes.len());
    let (digits, rest) = bytes.split_at(digits);
    Ok((std::str::from_utf8(digits)?.parse()?, rest))
}
