//! The images of new containers: resolved once each, pulled where they are missing, and kept from
//! pruning by a name of the agent's own.

use std::collections::BTreeMap;

use futures_util::future::try_join_all;
use mcp_spec::component::Pull;
use mcp_spec::image::ImageRef;
use mcp_spec::name::ComponentName;
use mcp_spec::observed::ImageId;
use mcp_spec::plan::{Action, After};

use super::context::Context;
use super::execution::Execution;
use super::failure::PartFailure;
use super::prepare::Befallen;
use crate::runtime::{ImageFacts, KeepTag};

/// Resolves every image once, however many components share it.
pub(super) async fn resolve_images(
    execution: &Execution,
    creating: &[(&Action, &After)],
) -> Result<BTreeMap<ComponentName, ImageFacts>, Befallen> {
    type Wish = (ImageRef, Option<ImageId>, bool, bool);
    let mut wishes: BTreeMap<String, (Wish, Vec<&ComponentName>)> = BTreeMap::new();
    for (action, after) in creating {
        let spec = &after.spec;
        let wish = (
            spec.image.clone(),
            after.image.clone(),
            spec.pull == Pull::Always && execution.resolves_anew(),
            spec.pull == Pull::Never,
        );
        wishes
            .entry(format!("{wish:?}"))
            .or_insert_with(|| (wish, Vec::new()))
            .1
            .push(&action.component);
    }
    let resolved = try_join_all(wishes.into_values().map(|(wish, components)| async move {
        let (image, recorded, anew, never) = wish;
        let first = components[0];
        let facts = resolve(execution, first, &image, recorded.as_ref(), anew, never)
            .await
            .map_err(|failure| (first.clone(), failure))?;
        Ok::<_, Befallen>(
            components
                .into_iter()
                .map(|component| (component.clone(), facts.clone()))
                .collect::<Vec<_>>(),
        )
    }))
    .await?;
    Ok(resolved.into_iter().flatten().collect())
}

async fn resolve(
    execution: &Execution,
    component: &ComponentName,
    image: &ImageRef,
    recorded: Option<&ImageId>,
    anew: bool,
    never: bool,
) -> Result<ImageFacts, PartFailure> {
    let runtime = &execution.context.runtime;
    let engine = |doing| move |source| PartFailure::Engine { doing, source };
    if let (Some(id), false) = (recorded, anew) {
        if let Some(facts) = runtime
            .image_by_id(id)
            .await
            .map_err(engine("looking for the image"))?
        {
            return Ok(facts);
        }
        if execution.brings_back() {
            return bring_back(execution, component, image, id, never).await;
        }
        // The recorded image is gone. Only a reference that names its digest brings the same bytes.
        if image.digest().is_none() {
            let now = runtime
                .image(image)
                .await
                .map_err(engine("looking for the image"))?;
            match now {
                Some(facts) if facts.id == *id => return Ok(facts),
                _ if execution.must_be_the_same_bytes() => {
                    return Err(PartFailure::ImageLost {
                        image: image.to_string(),
                        id: id.to_string(),
                    });
                }
                _ => {}
            }
        }
    }
    if !anew
        && let Some(facts) = runtime
            .image(image)
            .await
            .map_err(engine("looking for the image"))?
    {
        return Ok(facts);
    }
    if never {
        return Err(PartFailure::ImageAbsent {
            image: image.to_string(),
        });
    }
    pull(execution, component, image).await
}

/// The image of a component that an emptied engine took along, its recorded image with it: by its name,
/// and the same one only.
async fn bring_back(
    execution: &Execution,
    component: &ComponentName,
    image: &ImageRef,
    recorded: &ImageId,
    never: bool,
) -> Result<ImageFacts, PartFailure> {
    let digest = execution
        .old
        .get(component)
        .and_then(|row| row.image_digest);
    let is_the_same =
        |facts: &ImageFacts| facts.id == *recorded || (digest.is_some() && facts.digest == digest);
    let here = execution
        .context
        .runtime
        .image(image)
        .await
        .map_err(|source| PartFailure::Engine {
            doing: "looking for the image",
            source,
        })?;
    match here {
        Some(facts) if is_the_same(&facts) => return Ok(facts),
        _ if !never => {}
        _ => {
            return Err(PartFailure::ImageAbsent {
                image: image.to_string(),
            });
        }
    }
    let pulled = pull(execution, component, image).await?;
    if is_the_same(&pulled) {
        return Ok(pulled);
    }
    Err(PartFailure::ImageOther {
        image: image.to_string(),
        recorded: digest.map_or_else(|| recorded.to_string(), |digest| digest.to_string()),
        found: match (digest, pulled.digest) {
            (Some(_), Some(found)) => found.to_string(),
            _ => pulled.id.to_string(),
        },
    })
}

async fn pull(
    execution: &Execution,
    component: &ComponentName,
    image: &ImageRef,
) -> Result<ImageFacts, PartFailure> {
    execution
        .feed
        .tell(Some(component), "pulling", image.to_string());
    let feed = execution.feed.clone();
    execution
        .context
        .runtime
        .pull(image, &|progress| {
            feed.tell_counted(
                Some(component),
                "pulling",
                image.to_string(),
                progress.current_bytes,
                progress.total_bytes,
            );
        })
        .await
        .map_err(|source| PartFailure::Engine {
            doing: "pulling the image",
            source,
        })
}

/// The name that keeps an image.
#[must_use]
pub(super) fn keep_tag(id: &ImageId) -> KeepTag {
    let digits = id.as_str().strip_prefix("sha256:").unwrap_or(id.as_str());
    KeepTag {
        repository: "image".to_owned(),
        tag: digits.get(..24).unwrap_or(digits).to_owned(),
    }
}

/// Keeps each image from pruning. The journal names them by now, so that what is kept for nothing is
/// let go again.
pub(super) async fn keep_images(
    context: &Context,
    images: &BTreeMap<ComponentName, ImageFacts>,
) -> Result<(), Befallen> {
    let mut distinct: BTreeMap<&ImageId, &ComponentName> = BTreeMap::new();
    for (component, facts) in images {
        distinct.entry(&facts.id).or_insert(component);
    }
    try_join_all(distinct.into_iter().map(|(id, component)| async move {
        let kept = keep(context, id).await;
        kept.map_err(|failure| (component.clone(), failure))
    }))
    .await?;
    Ok(())
}

async fn keep(context: &Context, id: &ImageId) -> Result<(), PartFailure> {
    context
        .runtime
        .tag(id, &keep_tag(id))
        .await
        .map_err(|source| PartFailure::Engine {
            doing: "keeping the image",
            source,
        })
}
