//! A new migration changes what `sqlx::migrate!` embeds, so it must trigger a build.

fn main() {
    println!("cargo::rerun-if-changed=migrations");
}
