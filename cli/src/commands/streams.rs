//! Reading the streams of several nodes while one printer prints them.

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;

use crate::context::Context;
use crate::error::{Exit, Failure, Outcome};

/// Runs the readers and the printer to their ends; a printer that fails ends it all at once.
///
/// A reader's failure is told when it happens, since the others may go on for days.
pub(super) async fn pump<R>(
    context: &Context,
    mut readers: FuturesUnordered<R>,
    print: impl Future<Output = Result<(), Failure>>,
) -> Outcome
where
    R: Future<Output = Result<(), Failure>>,
{
    let mut exits = Vec::new();
    let mut printed = false;
    let mut print = std::pin::pin!(print);
    while !(printed && readers.is_empty()) {
        tokio::select! {
            // Neither branch is cancelled by the other: both are polled again where they were.
            Some(end) = readers.next(), if !readers.is_empty() => exits.push(match end {
                Ok(()) => Exit::Done,
                Err(failure) => {
                    context.out.failure(&failure);
                    failure.exit
                }
            }),
            result = &mut print, if !printed => {
                result?;
                printed = true;
            }
        }
    }
    match Exit::over_nodes(exits) {
        Exit::Done => Ok(Exit::Done),
        exit => Err(Failure::told(exit)),
    }
}
